"""Tracking around a tracker that only counts: what a replica wants, what it remembers, and frames that are missing."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from deployments.errors import InvalidPrompt, InvalidRequest, InvalidVideo, Overloaded, ServiceError, VideoNotCached
from deployments.messages.arrays import RgbArray
from deployments.messages.calls import Wanted
from deployments.messages.prompt import Prompt
from deployments.messages.track import (
    FrameMasks,
    FrameMemory,
    ObjectState,
    TrackCall,
    TrackedFrames,
    TrackPrompt,
    TrackState,
)
from deployments.messages.video import FrameBatch, frame_image_id
from deployments.model import tracker
from deployments.model.embedding_cache import EmbeddingCache
from deployments.model.tracker import Chunk, TrackedChunk
from deployments.model.tracking import Tracking

VIDEO_ID = "ab" * 32
NUMBERS = 25
"""Of an object's pointer: 100 bytes for each frame that was followed."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Stands for a frame: its first pixel."""

    value: int
    nbytes: int = 10


def counted(chunk: Chunk) -> TrackedChunk:
    """Masks whose scores say which frames were seen before; a memory for each of the last frames."""
    seen = [int(memory.pointer[0]) for one in chunk.state.objects[:1] for memory in one.recent]
    ids = [one.object_id for one in chunk.state.objects]
    masks = []
    for position, embedding in zip(chunk.indices, chunk.frames, strict=True):
        ids = list(dict.fromkeys((*ids, *(one.object_id for one in chunk.prompts if one.frame_index == position))))
        seen = [*seen, cast(Any, embedding).value]
        if ids:
            scores = np.full(len(ids), sum(seen), np.float32)
            masks.append(
                FrameMasks(position, tuple(ids), (2, 2), np.zeros((len(ids), 1, 1), np.float32), scores, scores)
            )
    memories = tuple(FrameMemory(value, np.full(NUMBERS, value, np.float32), None) for value in seen)
    objects = tuple(ObjectState(object_id, (), memories) for object_id in ids)
    return TrackedChunk(masks, TrackState(chunk.state.num_frames, chunk.state.reverse, objects))


@dataclass
class Replica:
    """A Tracking, and all that it is given."""

    embedded: list[int] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    admitted: int = 0
    refuses: Exception | None = None
    together: int = 0

    def __post_init__(self) -> None:
        observer = SimpleNamespace(hit=lambda: None, miss=lambda: None, evicted=lambda: None, holds=lambda *_: None)
        self.cache: EmbeddingCache[Any] = EmbeddingCache(observer, max_waiting=4)
        self.cache.configure(10_000, None, 1.0)
        engine = cast(Any, SimpleNamespace(model=None))
        self.tracking = Tracking("m", lambda: engine, self.embed, self.cache)
        self.tracking.configure(10_000)

    async def embed(self, pixels: RgbArray) -> tuple[Embedding, float]:
        value = int(pixels[0, 0, 0])
        self.embedded.append(value)
        first = len(self.embedded)
        await asyncio.sleep(0)
        self.together = max(self.together, len(self.embedded) - first + 1)
        return Embedding(value), 0.0

    def check(self, wait_s: float) -> None:
        self.waits.append(wait_s)
        if self.refuses is not None:
            raise self.refuses

    async def submit(self, chunk: Chunk) -> tuple[TrackedChunk, float]:
        self.chunks.append(chunk)
        return counted(chunk), 0.25

    def admit(self) -> None:
        self.admitted += 1

    async def ask(
        self, call: TrackCall, frames: FrameBatch | None = None, state: TrackState | None = None
    ) -> TrackedFrames | Wanted:
        return await self.tracking.answer(call, frames, state, cast(Any, self), 7.0, self.admit)

    async def follow(
        self, call: TrackCall, frames: FrameBatch | None = None, state: TrackState | None = None
    ) -> TrackedFrames:
        answer = await self.ask(call, frames, state)
        assert isinstance(answer, TrackedFrames)
        return answer

    async def remember(self, *indices: int) -> None:
        for index in indices:
            pixels = np.full((2, 2, 3), index, np.uint8)

            async def run(pixels: RgbArray = pixels) -> Any:
                return (await self.embed(pixels))[0]

            await self.cache.compute(frame_image_id(VIDEO_ID, index), run)
        self.embedded.clear()


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.setattr(tracker, "can_track", lambda _: True)
    return Replica()


def batch(*indices: int, fault: ServiceError | None = None) -> FrameBatch:
    return FrameBatch(indices, tuple(np.full((2, 2, 3), index, np.uint8) for index in indices), fault)


def call(frames: range, position: int | None = None, **options: Any) -> TrackCall:
    return TrackCall(VIDEO_ID, "job", frames[0] if position is None else position, frames, **options)


def prompt(position: int, object_id: int = 1) -> TrackPrompt:
    return TrackPrompt(object_id, position, Prompt(box=[0, 0, 1, 1]))


def scores(answer: TrackedFrames) -> list[tuple[int, float]]:
    return [(one.frame_index, float(one.scores[0])) for one in answer.masks]


START = TrackState(20)

# ---- what is wanted


async def test_state_is_wanted_first_then_frames(replica: Replica) -> None:
    first = call(range(3, 6), prompts=(prompt(3),))
    assert await replica.ask(first) == Wanted("state")
    assert await replica.ask(first, batch(3, 4, 5)) == Wanted("state")
    assert await replica.ask(first, None, START) == Wanted("frames")
    assert not replica.embedded
    answer = await replica.follow(first, batch(3, 4, 5), START)
    assert scores(answer) == [(3, 3), (4, 7), (5, 12)]
    assert (answer.num_frames, answer.hits, answer.fault, answer.state) == (3, 0, None, None)
    # The state is kept, the frames are not there.
    assert await replica.ask(call(range(6, 8))) == Wanted("frames")
    assert scores(await replica.follow(call(range(6, 8)), batch(6, 7))) == [(6, 18), (7, 25)]


async def test_the_state_goes_by_job_and_place(replica: Replica) -> None:
    await replica.follow(call(range(3), prompts=(prompt(0),)), batch(0, 1, 2), START)
    assert await replica.ask(call(range(4, 6)), batch(4, 5)) == Wanted("state")
    other = TrackCall(VIDEO_ID, "other", 3, range(3, 5))
    assert await replica.ask(other, batch(3, 4)) == Wanted("state")
    assert isinstance(await replica.ask(call(range(3, 5)), batch(3, 4)), TrackedFrames)


async def test_a_model_without_memory_follows_nothing(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "can_track", lambda _: False)
    with pytest.raises(InvalidRequest, match=r"^model_id: m has no memory"):
        await replica.ask(call(range(3)), batch(0, 1, 2), START)


# ---- frames that are remembered


async def test_frames_that_are_remembered_are_neither_needed_nor_embedded(replica: Replica) -> None:
    await replica.remember(0, 1, 2, 4)
    answer = await replica.follow(call(range(3), prompts=(prompt(0),)), None, START)
    assert (scores(answer), answer.hits, replica.embedded) == ([(0, 0), (1, 1), (2, 3)], 3, [])
    assert replica.admitted == 0
    assert await replica.ask(call(range(3, 6))) == Wanted("frames")
    answer = await replica.follow(call(range(3, 6)), batch(3, 4, 5))
    assert (scores(answer), answer.hits, replica.embedded) == ([(3, 6), (4, 10), (5, 15)], 1, [3, 5])
    assert replica.admitted == 2
    # Those are remembered now.
    assert isinstance(await replica.ask(call(range(3, 6))), TrackedFrames)


async def test_frames_are_embedded_together(replica: Replica) -> None:
    await replica.follow(call(range(5), prompts=(prompt(0),)), batch(*range(5)), START)
    assert replica.together == 5


# ---- the chunk


async def test_the_tracker_counts_by_positions_and_answers_go_by_frames(replica: Replica) -> None:
    forward = call(range(7, 20, 4), 1, prompts=(prompt(2), prompt(3, 5)))
    answer = await replica.follow(forward, batch(7, 11, 15, 19), TrackState(5, objects=(ObjectState(9, (), ()),)))
    assert replica.chunks[-1].indices == [1, 2, 3, 4]
    assert [one.frame_index for one in replica.chunks[-1].prompts] == [2, 3]
    assert [one.frame_index for one in answer.masks] == [7, 11, 15, 19]
    assert answer.masks[-1].object_ids == (9, 1, 5)
    back = TrackCall(VIDEO_ID, "back", 4, range(19, 6, -4))
    answer = await replica.follow(back, None, TrackState(5, True, (ObjectState(9, (), ()),)))
    assert replica.chunks[-1].indices == [4, 3, 2, 1]
    assert [one.frame_index for one in answer.masks] == [19, 15, 11, 7]
    # The next one goes on at position 0.
    following = TrackCall(VIDEO_ID, "back", 0, range(3, 2, -4))
    assert scores(await replica.follow(following, batch(3))) == [(3, 55)]


async def test_objects_that_ended_are_followed_no_more(replica: Replica) -> None:
    await replica.follow(call(range(2), prompts=(prompt(0, 1), prompt(0, 2))), batch(0, 1), START)
    ending = call(range(2, 4), ended=frozenset({1}), wants_state=True)
    for _ in range(2):
        # When it is sent again too.
        answer = await replica.follow(ending, batch(2, 3))
        assert [one.object_ids for one in answer.masks] == [(2,), (2,)]
        assert answer.state is not None
        assert [one.object_id for one in answer.state.objects] == [2]
        assert scores(answer) == [(2, 3), (3, 6)]


async def test_the_state_is_answered_if_it_was_asked_for(replica: Replica) -> None:
    answer = await replica.follow(call(range(2), prompts=(prompt(0),), wants_state=True), batch(0, 1), START)
    assert answer.state is not None
    assert (answer.state.num_frames, len(answer.state.objects[0].recent)) == (20, 2)
    assert answer.track_s == 0.25
    # On another replica, the same masks.
    other = Replica()
    here = await replica.follow(call(range(2, 4)), batch(2, 3))
    there = await other.follow(call(range(2, 4)), batch(2, 3), answer.state)
    assert scores(here) == scores(there) == [(2, 3), (3, 6)]


async def test_who_would_wait_too_long_is_refused_and_changes_nothing(replica: Replica) -> None:
    await replica.follow(call(range(2), prompts=(prompt(0),)), batch(0, 1), START)
    replica.refuses = Overloaded("the queue takes 9 s")
    with pytest.raises(Overloaded):
        await replica.ask(call(range(2, 4)), batch(2, 3))
    assert replica.waits == [7.0, 7.0]
    assert len(replica.chunks) == 1
    replica.refuses = None
    assert scores(await replica.follow(call(range(2, 4)))) == [(2, 3), (3, 6)]


# ---- frames that are missing

FAULT = InvalidVideo("video: frame cannot be decoded")
GONE = VideoNotCached("video_id: is not kept")


@pytest.mark.parametrize(
    ("frames", "given", "remembered", "reached"),
    [
        (range(6), [0, 1, 2], [], [0, 1, 2]),
        (range(6), [], [], []),
        (range(6), [], [0, 1], [0, 1]),
        (range(6), [0, 1], [2, 3], [0, 1, 2, 3]),
        # What is remembered after the fault is no reason to leave frames out.
        (range(6), [], [0, 1, 3, 5], [0, 1]),
        (range(6), [0], [2, 3, 4, 5], [0]),
        (range(6), [], [5], []),
        (range(6, 0, -1), [6, 5], [2], [6, 5]),
        (range(0, 12, 2), [0, 2, 4], [8], [0, 2, 4]),
        # The file announces frame 1, and does not hold it.
        (range(6), [0, 2, 3], [], [0, 1, 2, 3]),
        (range(6), [0, 2, 3], [4], [0, 1, 2, 3, 4]),
    ],
)
@pytest.mark.parametrize("fault", [FAULT, GONE])
async def test_a_fault_comes_after_the_frames_before_it(
    replica: Replica, frames: range, given: list[int], remembered: list[int], reached: list[int], fault: ServiceError
) -> None:
    await replica.remember(*remembered)
    position, reverse = frames[0] // abs(frames.step), frames.step < 0
    state = TrackState(20, reverse, (ObjectState(1, (), ()),))
    answer = await replica.follow(call(frames, position, wants_state=True), batch(*given, fault=fault), state)
    assert [one.frame_index for one in answer.masks] == [one for one in reached if one in (*given, *remembered)]
    assert (answer.num_frames, answer.fault) == (len(reached), fault)
    # It goes on from there.
    assert answer.state is not None
    rest = frames[len(reached) :]
    following = position + (-1 if reverse else 1) * len(reached)
    answer = await replica.follow(call(rest, following), batch(*rest))
    assert [one.frame_index for one in answer.masks] == list(rest)


async def test_a_fault_after_the_last_frame_is_none(replica: Replica) -> None:
    await replica.remember(2)
    answer = await replica.follow(call(range(3), prompts=(prompt(0),)), batch(0, 1, fault=FAULT), START)
    assert (answer.num_frames, answer.fault, len(answer.masks)) == (3, None, 3)


async def test_frames_that_the_file_announces_and_does_not_hold_are_left_out(replica: Replica) -> None:
    answer = await replica.follow(call(range(5), prompts=(prompt(0),)), batch(0, 1, 3), START)
    assert (scores(answer), answer.num_frames, answer.fault) == ([(0, 0), (1, 1), (3, 4)], 5, None)
    assert replica.chunks[-1].indices == [0, 1, 3]
    # Memory still counts them.
    answer = await replica.follow(call(range(5, 7)), batch())
    assert (answer.masks, answer.num_frames, answer.fault) == ((), 2, None)
    assert scores(await replica.follow(call(range(7, 8)), batch(7))) == [(7, 11)]


@pytest.mark.parametrize("given", [(0, 1, 3, 4), ()])
async def test_a_prompt_on_a_frame_that_is_not_there_is_an_error(replica: Replica, given: Sequence[int]) -> None:
    with pytest.raises(InvalidPrompt, match=r"^prompts: frame 2 is announced in the file, but not there"):
        await replica.ask(call(range(5), prompts=(prompt(2),)), batch(*given), START)


async def test_a_prompt_after_a_fault_waits_for_its_frame(replica: Replica) -> None:
    first = call(range(4), prompts=(prompt(0), prompt(2, 8)))
    answer = await replica.follow(first, batch(0, 1, fault=GONE), START)
    assert (answer.num_frames, [one.object_ids for one in answer.masks]) == (2, [(1,), (1,)])
    assert replica.chunks[-1].prompts == [first.prompts[0]]
    answer = await replica.follow(call(range(2, 4), prompts=(prompt(2, 8),)), batch(2, 3))
    assert [one.object_ids for one in answer.masks] == [(1, 8), (1, 8)]


# ---- states that are kept


async def test_an_answer_that_was_lost_is_asked_for_again_and_again(replica: Replica) -> None:
    await replica.follow(call(range(2), prompts=(prompt(0),)), batch(0, 1), START)
    for _ in range(3):
        assert scores(await replica.follow(call(range(2, 4)), batch(2, 3))) == [(2, 3), (3, 6)]
    assert scores(await replica.follow(call(range(4, 5)), batch(4))) == [(4, 10)]
    # Two states are kept: before and after the last call.
    [kept] = [kept for kept, _ in replica.tracking._kept._entries.values()]
    assert list(kept.states) == [(0, 4), (0, 5)]
    assert await replica.ask(call(range(2, 4))) == Wanted("state")


async def test_a_job_that_goes_back_to_an_older_state_goes_on_from_there(replica: Replica) -> None:
    answer = await replica.follow(call(range(2), prompts=(prompt(0),), wants_state=True), batch(0, 1), START)
    for first in (2, 3, 4, 5):
        await replica.follow(call(range(first, first + 1)), batch(first))
    assert await replica.ask(call(range(2, 4))) == Wanted("state")
    assert scores(await replica.follow(call(range(2, 4)), None, answer.state)) == [(2, 3), (3, 6)]
    assert scores(await replica.follow(call(range(4, 5)))) == [(4, 10)]


async def test_states_are_kept_within_their_bytes(replica: Replica) -> None:
    def of(job: str, first: int) -> TrackCall:
        return TrackCall(VIDEO_ID, job, first, range(first, first + 1), prompts=(prompt(0),) if not first else ())

    await replica.remember(*range(8))
    replica.tracking.configure(600)
    # After its n-th frame a job takes n + (n − 1) times 100 bytes.
    await replica.follow(of("a", 0), None, START)
    await replica.follow(of("b", 0), None, START)
    await replica.follow(of("b", 1))
    assert replica.tracking._kept.nbytes == 100 + 300
    await replica.follow(of("c", 0), None, START)
    await replica.follow(of("c", 1))
    # The one unused longest made room.
    assert (len(replica.tracking._kept), replica.tracking._kept.nbytes) == (2, 600)
    assert await replica.ask(of("a", 1)) == Wanted("state")
    replica.tracking.configure(300)
    assert await replica.ask(of("b", 2)) == Wanted("state")
    assert isinstance(await replica.ask(of("c", 1)), TrackedFrames)
    # What does not fit is answered all the same, and not kept.
    assert scores(await replica.follow(of("c", 2))) == [(2, 3)]
    assert await replica.ask(of("c", 3)) == Wanted("state")
    assert len(replica.tracking._kept) == 0


# ---- batches on the tracker


async def test_an_object_that_does_not_fit_fails_alone(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    class Tracker:
        def __init__(self, engine: Any) -> None:
            batches.append(0)

        def track(self, chunks: Sequence[Chunk]) -> list[TrackedChunk]:
            batches.append(len(chunks))
            if any(not chunk.frames for chunk in chunks):
                raise Overloaded("an object does not fit")
            return [counted(chunk) for chunk in chunks]

    monkeypatch.setattr(tracker, "Tracker", Tracker)
    fits = Chunk([cast(Any, Embedding(4))], [0], [prompt(0)], START)
    results = replica.tracking.run([fits, Chunk([], [], [], START), fits])
    assert [type(one) for one in results] == [TrackedChunk, Overloaded, TrackedChunk]
    assert replica.tracking.run([fits])
    # The tracker is built once.
    assert batches == [0, 3, 1, 1, 1, 1]
