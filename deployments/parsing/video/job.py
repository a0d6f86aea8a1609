"""TrackJob: follows objects through a video, some frames at a time, and loses nothing when a replica dies.

What a model remembers stays with its replica under the job's name, and comes back here with every few frames. If the
replica dies, the job goes on from there on another one, and gets the same masks again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from deployments.errors import DeadlineExceeded, InvalidVideo, Overloaded, Unavailable, VideoNotCached
from deployments.messages.calls import Wanted
from deployments.messages.track import LOGITS_BYTES, FrameMasks, TrackCall, TrackedFrames, TrackState
from deployments.messages.video import VideoFacts
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.stage_times import StageTimes
from deployments.parsing.video.job_replica import JobReplica
from deployments.parsing.video.plan import Pass, Plan
from deployments.parsing.video.prompts import VideoPrompts
from deployments.parsing.video.video_calls import RequestedVideo, VideoCalls

T = TypeVar("T")

STATE_EVERY = 16
"""After so many frames the state comes back, while none is lost: what a death costs at most. It is 3.9 MB an object for
SAM 2, so 0.25 MB a frame; the frame's logits are 0.26 MB."""

RECOVERY = 8
"""After so many chunks in a row for which the replica had the state, one loss fewer counts."""

FIRST_LOOKS = 3
"""How many other replicas a job looks at after its first frames."""

LOOK_S = 5.0
"""How long a look at another replica may keep the masks waiting."""

CHUNK_S = 0.5
"""About how long a chunk of frames should take: the first mask comes soon, and a client that leaves costs no more."""

MAX_CHUNK = 16

CHUNK_BYTES = 64 * 2**20
"""Bytes of a chunk's decoded frames and logits."""

TRIES = 8
"""How often a chunk is sent while what it needs is not there."""


@dataclass(frozen=True, eq=False)
class TrackRequest:
    """What a job is to do.

    Attributes:
        video: the video.
        facts: what is known of it.
        model_id: a configured model that can follow objects.
        prompts: by frame indices.
        plan: which frames are followed.
        replica: the model's replica that has taken the job on.
    """

    video: RequestedVideo
    facts: VideoFacts
    model_id: str
    prompts: VideoPrompts
    plan: Plan
    replica: JobReplica


@dataclass(eq=False)
class _Progress:
    """How far a pass has come.

    Attributes:
        run: the pass.
        number: 0 for the first pass, 1 for the second.
        state: the last one that came back.
        state_at: of how many frames it is the state.
        done: how many frames were followed, by the replica that has the newest state.
        given: how many frames' masks were given to the client.
        losses: how often the newest state was lost, less what has been made up for.
        found: for how many chunks in a row the replica had the state since then.
    """

    run: Pass
    number: int
    state: TrackState
    state_at: int = 0
    done: int = 0
    given: int = 0
    losses: int = 0
    found: int = 0

    @property
    def state_every(self) -> int:
        """After how many frames the state comes back: sooner where states are lost, so that a job gets on at all."""
        return STATE_EVERY >> self.losses

    def lose(self) -> None:
        """Goes back to the last state that came back, since a newer one is lost."""
        self.done = self.state_at
        self.losses = min(self.losses + 1, STATE_EVERY.bit_length() - 1)
        self.found = 0

    def find(self, had_state: bool) -> None:
        """Notes whether the replica that followed a chunk had its state, or had to be sent it."""
        self.found = self.found + 1 if had_state else 0
        if self.found >= RECOVERY:
            self.losses = max(0, self.losses - 1)
            self.found = 0


class TrackJob:
    """Follows objects through a video.

    Args:
        request: what to do.
        calls: sends calls to models.
        videos: sends calls to VideoReader.
        deadline: when all must be done.
        times: receives the seconds of each stage.
    """

    def __init__(
        self, request: TrackRequest, calls: ModelCalls, videos: VideoCalls, deadline: Deadline, times: StageTimes
    ) -> None:
        self._request = request
        self._calls = calls
        self._videos = videos
        self._deadline = deadline
        self._times = times
        self._size = 1
        self._needs_frames = True

    async def masks(self) -> AsyncGenerator[FrameMasks, None]:
        """Yields the masks of each frame in the order in which frames are followed.

        While the caller uses a chunk's masks, the next chunk runs; no more than that is ahead of the caller.

        Raises:
            InvalidVideo: a frame cannot be decoded.
            VideoNotCached: the file is not kept any more, and the request did not bring it.
            Unavailable: the model or the readers are overloaded, or a deadline has passed.
        """
        chunks = self._chunks()
        ahead = asyncio.ensure_future(anext(chunks, None))
        try:
            while (masks := await ahead) is not None:
                ahead = asyncio.ensure_future(anext(chunks, None))
                for one in masks:
                    yield one
        finally:
            ahead.cancel()
            try:
                await asyncio.gather(ahead, return_exceptions=True)
                await chunks.aclose()
            finally:
                # Also if the clean-up itself is cancelled.
                self._videos.close(self._request.video.video_id, self._request.replica.job)
                self._request.replica.end()
        facts = self._request.facts
        if facts.is_cut and self._request.plan.reaches_end:
            raise InvalidVideo(f"video: frame {facts.num_frames} cannot be decoded: the file is cut off there")

    async def _chunks(self) -> AsyncGenerator[list[FrameMasks], None]:
        state = TrackState()
        for number, run in enumerate(self._request.plan.passes):
            fresh = TrackState(self._request.plan.num_positions, run.is_reverse)
            progress = _Progress(run, number, fresh if run.starts_over else state.turned())
            async with aclosing(self._pass(progress)) as chunks:
                async for masks in chunks:
                    yield masks
            state = progress.state

    async def _pass(self, progress: _Progress) -> AsyncGenerator[list[FrameMasks], None]:
        frames = progress.run.frames
        while progress.done < len(frames):
            started = time.perf_counter()
            call = self._call(progress)
            answer = await self._ask(call, progress)
            if answer is None:
                # The replica that had the newest state is gone, or had no room for it.
                progress.lose()
                continue
            self._note(answer, len(call.frames), time.perf_counter() - started)
            progress.done += answer.num_frames
            if answer.state is not None:
                progress.state, progress.state_at = answer.state, progress.done
                if not answer.hits and answer.fault is None:
                    is_first = progress.done <= len(call.frames)
                    deadline = self._step().step(LOOK_S)
                    await self._request.replica.balance(answer, deadline, FIRST_LOOKS if is_first else 1)
            new = frames[progress.given : progress.done] if progress.done > progress.given else range(0)
            progress.given = max(progress.given, progress.done)
            yield [
                replace(one, time_s=self._request.facts.time_s(one.frame_index))
                for one in answer.masks
                if one.frame_index in new
            ]
            # A file that is not there any more is sent again before the next chunk.
            if answer.fault is not None and not isinstance(answer.fault, VideoNotCached):
                raise answer.fault

    def _call(self, progress: _Progress) -> TrackCall:
        run, prompts = progress.run, self._request.prompts
        facts, objects = self._request.facts, len({one.object_id for one in prompts.prompts})
        frame_bytes = 3 * facts.width * facts.height + objects * LOGITS_BYTES
        size = max(1, min(self._size, CHUNK_BYTES // frame_bytes))
        stops = [run.frames.index(index) for _, index in prompts.removals if index in run.frames]
        stop = min([progress.done + size, *(place for place in stops if place > progress.done)])
        frames = run.frames[progress.done : stop]
        ended = {object_id for object_id, index in prompts.removals if index == frames[0]}
        done = progress.done + len(frames)
        is_last_pass = run is self._request.plan.passes[-1]
        return TrackCall(
            video_id=self._request.video.video_id,
            job=self._request.replica.job,
            run=progress.number,
            position=run.position(frames[0]),
            frames=frames,
            prompts=run.prompts_on(frames, prompts.prompts) if run.starts_over else (),
            ended=frozenset(ended),
            # After the first frames too, so that the job may move at once.
            wants_state=done - progress.state_at >= progress.state_every
            or not progress.done
            or (done == len(run.frames) and not is_last_pass),
        )

    async def _ask(self, call: TrackCall, progress: _Progress) -> TrackedFrames | None:
        """Sends a call with what the replica wants; returns None if that is a state that is not here any more."""
        request = self._request
        model = request.replica.model
        state = progress.state if progress.done == progress.state_at else None
        # At first the state is small.
        sent = state if state is not None and not state.objects else None
        for _ in range(TRIES):
            deadline = self._step()

            def send(sent: TrackState | None = sent, deadline: Deadline = deadline) -> Any:
                frames = None
                if self._needs_frames:
                    frames = self._videos.frames(request.video.video_id, call.job, call.frames)
                return model.track.remote(call, frames, sent, deadline.remaining())

            answer: TrackedFrames | Wanted = await when_free(
                partial(self._calls.retries.call, send, deadline, request.model_id), deadline
            )
            if isinstance(answer, TrackedFrames):
                if isinstance(answer.fault, VideoNotCached) and not answer.num_frames:
                    await self._upload(deadline)
                    continue
                progress.find(had_state=sent is None)
                return answer
            if answer.what == "frames":
                self._needs_frames = True
            elif state is None:
                return None
            else:
                sent = state
        raise Unavailable("video: its frames could not be brought to the model; it is safe to send it again")

    async def _upload(self, deadline: Deadline) -> None:
        """Sends the file to VideoReader; one that must make room for others before it is used is sent again later.

        Raises:
            VideoNotCached: the request did not bring the file.
        """
        try:
            await when_free(partial(self._videos.upload, self._request.video, deadline), deadline)
        except VideoNotCached:
            if self._request.video.source is None:
                raise

    def _step(self) -> Deadline:
        if not self._deadline.remaining():
            raise DeadlineExceeded("the request did not finish within its deadline")
        return self._deadline.step(self._calls.config.request_timeout_s)

    def _note(self, answer: TrackedFrames, asked: int, seconds: float) -> None:
        """Notes where time went, and chooses the size of the next chunk."""
        self._times.add("embed", answer.embed_s)
        self._times.add("track", answer.track_s)
        self._times.add("queue", seconds - answer.embed_s - answer.track_s)
        self._needs_frames = answer.hits < asked
        fitting = int(CHUNK_S / (seconds / max(1, answer.num_frames)))
        self._size = max(1, min(MAX_CHUNK, 2 * self._size, fitting))


async def when_free(call: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
    """Makes a call, and again while the service is overloaded: a job that has come far must not end for that.

    Raises:
        Overloaded: it is overloaded until the deadline.
    """
    while True:
        try:
            return await call()
        except Overloaded as error:
            pause_s = float(error.retry_after_s or 1)
            if deadline.remaining() <= pause_s:
                raise
            await asyncio.sleep(pause_s)
