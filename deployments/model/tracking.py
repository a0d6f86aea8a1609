"""Tracking: a model replica's answers to calls that follow objects through some frames of a video.

What is remembered of the objects is kept here for the next call. A replica that does not have it asks for it, so any
replica can go on where another stopped.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from deployments.errors import InvalidPrompt, InvalidRequest, Overloaded
from deployments.messages.arrays import RgbArray
from deployments.messages.calls import Wanted
from deployments.messages.track import FrameMasks, TrackCall, TrackedFrames, TrackState
from deployments.messages.video import FrameBatch, frame_image_id
from deployments.model.batching import Stage
from deployments.model.embedding_cache import EmbeddingCache
from deployments.telemetry.metrics import StateMetrics
from deployments.telemetry.tracing import span

if TYPE_CHECKING:
    from deployments.model.engine import Engine, ImageEmbedding
    from deployments.model.tracker import Chunk, TrackedChunk, Tracker


GONE_S = 60.0
"""A job from which nothing was heard for so long does not count any more."""


@dataclass(frozen=True, eq=False)
class _Kept:
    """A job's last states, by the pass and the position of the frame that each is for."""

    states: dict[tuple[int, int], TrackState]

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self.states.values())


class Tracking:
    """Follows objects through videos, on the replica's engine.

    Args:
        model_id: the model.
        engine: returns the engine, or raises why there is none.
        embed: embeds a frame; returns the embedding, and the seconds that the encoder ran.
        cache: the embeddings that the replica remembers, of images and of frames.
    """

    def __init__(
        self,
        model_id: str,
        engine: "Callable[[], Engine]",
        embed: "Callable[[RgbArray], Any]",
        cache: "EmbeddingCache[ImageEmbedding]",
    ) -> None:
        self._model_id = model_id
        self._engine = engine
        self._embed = embed
        self._cache = cache
        self._tracker: Tracker | None = None
        self._seen: dict[str, float] = {}
        self._kept: EmbeddingCache[_Kept] = EmbeddingCache(StateMetrics(model_id), max_waiting=0)

    def configure(self, state_bytes: int) -> None:
        """Sets how many bytes of states are kept."""
        self._kept.configure(state_bytes, None, 1.0)

    def run(self, chunks: "Sequence[Chunk]") -> "list[TrackedChunk | Overloaded]":
        """Runs a batch of chunks on the tracker, which is built for the first one.

        Returns:
            For each chunk the masks and the state, or the error if one of its objects does not fit into the device's
            memory.
        """
        # Imported here, since it imports torch, which is loaded by now.
        from deployments.model.tracker import Tracker

        if self._tracker is None:
            self._tracker = Tracker(self._engine())
        try:
            return list(self._tracker.track(chunks))
        except Overloaded as error:
            # The others of the batch may fit.
            return [error.with_traceback(None)] if len(chunks) == 1 else [self.run([chunk])[0] for chunk in chunks]

    def begin(self, job: str) -> int:
        """Takes on a job; returns how many others there are, for callers that look for a replica with few.

        Raises:
            InvalidRequest: the model has no memory.
        """
        self.check()
        self._seen[job] = time.monotonic()
        return self._others(job)

    def end(self, job: str) -> None:
        """Forgets a job."""
        self._seen.pop(job, None)
        self._kept.forget(job)

    def _others(self, job: str) -> int:
        latest = time.monotonic() - GONE_S
        self._seen = {name: seen for name, seen in self._seen.items() if seen > latest}
        return len(self._seen) - (job in self._seen)

    def check(self) -> None:
        """Rejects videos if the model cannot follow objects.

        Raises:
            InvalidRequest: the model has no memory.
        """
        from deployments.model.tracker import can_track

        if not can_track(self._engine().model):
            raise InvalidRequest(f"model_id: {self._model_id} has no memory of the kind that following objects needs")

    async def answer(
        self,
        call: TrackCall,
        frames: FrameBatch | None,
        state: TrackState | None,
        stage: "Stage[Chunk, TrackedChunk]",
        wait_s: float,
        admit: Callable[[], None],
    ) -> TrackedFrames | Wanted:
        """Follows the objects through the call's frames.

        Args:
            call: which frames, and the prompts on them.
            frames: the frames, if the replica has asked for them. Those that it remembers need not be there.
            state: the state before them, if it was asked for.
            stage: where chunks queue.
            wait_s: how long the call may wait for its turn.
            admit: raises Overloaded if the queue of the image encoder is too long.

        Raises:
            Overloaded: the queue is too long, or an object does not fit into the device's memory.
            InvalidPrompt: a prompt is on a frame that the file does not hold.
        """
        self.check()
        self._seen[call.job] = time.monotonic()
        if state is None:
            kept = await self._kept.get(call.job, None)
            state = None if kept is None else kept.states.get((call.run, call.position))
            if state is None:
                return Wanted("state")
        started = time.perf_counter()
        embedded = await self._embedded(call, frames, admit)
        if embedded is None:
            return Wanted("frames")
        embeddings, hits = embedded
        embed_s = time.perf_counter() - started
        reached = _reached(call, embeddings, frames)
        # By position, which is what memory knows of the time between two frames.
        step = -1 if state.reverse else 1
        indices = {call.position + step * place: index for place, index in enumerate(call.frames[: len(reached)])}
        before, state = state, state.without(call.ended) if call.ended else state
        masks: tuple[FrameMasks, ...] = ()
        track_s = 0.0
        chunk = _chunk(call, indices, embeddings, state)
        if chunk.frames:
            stage.check(wait_s)
            with span("track", frames=len(chunk.frames), objects=len(state.objects)):
                tracked, track_s = await stage.submit(chunk)
            state = tracked.state
            masks = tuple(replace(one, frame_index=indices[one.frame_index]) for one in tracked.masks)
        # That before too: an answer that is lost is asked for again.
        after = call.position + step * len(reached)
        await self._keep(call.job, {(call.run, call.position): before, (call.run, after): state})
        fault = frames.fault if frames is not None and len(reached) < len(call.frames) else None
        answered = state if call.wants_state else None
        return TrackedFrames(masks, len(reached), answered, fault, hits, self._others(call.job), embed_s, track_s)

    async def _embedded(
        self, call: TrackCall, frames: FrameBatch | None, admit: Callable[[], None]
    ) -> "tuple[dict[int, ImageEmbedding], int] | None":
        """Returns the embeddings by frame, and how many were remembered; None if frames are needed and missing."""
        hits = 0
        embeddings: dict[int, ImageEmbedding] = {}
        for index in call.frames:
            remembered = await self._cache.get(frame_image_id(call.video_id, index), None)
            if remembered is not None:
                embeddings[index], hits = remembered, hits + 1
        if len(embeddings) == len(call.frames):
            return embeddings, hits
        if frames is None:
            return None
        pixels = dict(zip(frames.indices, frames.pixels, strict=True))
        new = [index for index in call.frames if index in pixels and index not in embeddings]
        # Together, so that they form batches.
        found = await asyncio.gather(*(self._compute(call.video_id, index, pixels[index], admit) for index in new))
        return embeddings | dict(zip(new, found, strict=True)), hits

    async def _compute(
        self, video_id: str, index: int, pixels: RgbArray, admit: Callable[[], None]
    ) -> "ImageEmbedding":
        async def encode() -> "ImageEmbedding":
            embedding, _ = await self._embed(pixels)
            return embedding  # type: ignore[no-any-return]

        return await self._cache.compute(frame_image_id(video_id, index), encode, admit=admit)

    async def _keep(self, job: str, states: dict[tuple[int, int], TrackState]) -> None:
        self._kept.forget(job)

        async def kept() -> _Kept:
            return _Kept(states)

        await self._kept.compute(job, kept)


def _reached(call: TrackCall, embeddings: "dict[int, ImageEmbedding]", frames: FrameBatch | None) -> list[int]:
    """Returns the call's frames up to the first that is missing because of a fault.

    A frame that is missing without a fault is one that the file announces but does not hold.
    """
    if frames is None or frames.fault is None:
        return list(call.frames)
    # The reader came past these; what it did not come to may be remembered.
    passed = max((place for place, index in enumerate(call.frames, 1) if index in frames.indices), default=0)
    rest = takewhile(lambda index: index in embeddings, call.frames[passed:])
    return [*call.frames[:passed], *rest]


def _chunk(
    call: TrackCall, indices: Mapping[int, int], embeddings: "dict[int, ImageEmbedding]", state: TrackState
) -> "Chunk":
    """Builds the tracker's chunk from the frames' indices by their positions."""
    # Imported here, since it imports torch, which is loaded by now.
    from deployments.model.tracker import Chunk

    held = [position for position, index in indices.items() if index in embeddings]
    prompts = [prompt for prompt in call.prompts if prompt.frame_index in indices]
    for prompt in prompts:
        if prompt.frame_index not in held:
            raise InvalidPrompt(f"prompts: frame {indices[prompt.frame_index]} is announced in the file, but not there")
    return Chunk([embeddings[indices[position]] for position in held], held, prompts, state)
