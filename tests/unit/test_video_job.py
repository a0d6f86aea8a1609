"""TrackJob around made-up replicas whose masks depend on every frame before: deaths, files that are gone, faults.

A replica's state is a hash of all that it has seen, and each mask is that hash: a frame that is followed twice, left
out, or followed from the wrong state changes all masks after it.
"""

import asyncio
import hashlib
import io
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ray.exceptions import RayActorError

from deployments.errors import (
    DeadlineExceeded,
    InvalidPrompt,
    InvalidVideo,
    Overloaded,
    ServiceError,
    Unavailable,
    VideoNotCached,
)
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
from deployments.messages.video import VideoFacts
from deployments.parsing import retries as retries_module
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.stage_times import StageTimes
from deployments.parsing.video import job as job_module
from deployments.parsing.video.job import MAX_CHUNK, RECOVERY, STATE_EVERY, TrackJob, TrackRequest
from deployments.parsing.video.job_replica import JobReplica
from deployments.parsing.video.plan import DIRECTIONS, FrameRange, plan
from deployments.parsing.video.prompts import VideoPrompts
from deployments.parsing.video.video_calls import RequestedVideo, VideoCalls
from deployments.settings import RequestParserConfig
from deployments.telemetry.metrics import RequestMetrics
from tests.loops import settled

VIDEO_ID = "a" * 64
BOX = Prompt(box=[0, 0, 1, 1])

Masks = list[tuple[int, tuple[int, ...], tuple[float, ...]]]


def digest(*parts: Any) -> float:
    return float(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:3], "big"))


def remembered(object_id: int, conditioning: list[tuple[int, float]], value: float) -> ObjectState:
    """An object's state: a number for each frame with a prompt, and one for all that was seen since."""

    def memory(index: int, number: float) -> FrameMemory:
        return FrameMemory(index, np.array([number], np.float32), None)

    return ObjectState(object_id, tuple(memory(*one) for one in conditioning), (memory(-1, value),))


def follow(call: TrackCall, state: TrackState, most: int) -> tuple[list[FrameMasks], TrackState]:
    """What the contract of TrackCall asks for: a function of the call and of the state."""
    state = state.without(call.ended) if call.ended else state
    values = {
        one.object_id: (
            [(memory.frame_index, float(memory.pointer[0])) for memory in one.conditioning],
            float(one.recent[0].pointer[0]) if one.recent else 0.0,
        )
        for one in state.objects
    }
    step, masks = -1 if state.reverse else 1, []
    for place, index in enumerate(call.frames[:most]):
        position = call.position + step * place
        prompts = {one.object_id for one in call.prompts if one.frame_index == position}
        followed = []
        for object_id in dict.fromkeys((*values, *sorted(prompts))):
            conditioning, value = values.get(object_id, ([], 0.0))
            if state.reverse and object_id not in prompts and position >= min(one for one, _ in conditioning):
                continue
            value = digest(state.num_frames, position, index, conditioning, value, object_id in prompts)
            if object_id in prompts:
                conditioning = [*conditioning, (position, value)]
            values[object_id] = conditioning, value
            followed.append(object_id)
        if followed:
            scores = np.array([values[object_id][1] for object_id in followed], np.float32)
            logits = np.zeros((len(followed), 1, 1), np.float32)
            masks.append(FrameMasks(index, tuple(followed), (48, 64), logits, scores, np.ones_like(scores)))
    objects = tuple(remembered(object_id, *value) for object_id, value in values.items())
    return masks, replace(state, objects=objects)


class Response(asyncio.Future[Any]):
    """What a handle's call returns, as far as it matters here."""


def answered(outcome: Any) -> Response:
    response = Response(loop=asyncio.get_running_loop())
    if isinstance(outcome, BaseException):
        response.set_exception(outcome)
    else:
        response.set_result(outcome)
    return response


@dataclass
class Model:
    """A model's replicas. `before` is called with each call's number, and may kill, be slow, or give an outcome.

    Attributes:
        remembers: whether states are kept.
        embedded: the frames that are remembered.
        calls: those that were answered with masks, with the state that was sent along.
        states_sent: how often a state with objects came along.
    """

    before: Callable[["Model", TrackCall], Any] = lambda *_: None
    remembers: bool = True
    kept: dict[tuple[str, int, int], TrackState] = field(default_factory=dict)
    embedded: set[int] = field(default_factory=set)
    asked: int = 0
    calls: list[TrackCall] = field(default_factory=list)
    states_sent: int = 0
    seconds: float = 0.0
    cancelled: int = 0
    ended: list[str] = field(default_factory=list)

    @property
    def track(self) -> Any:
        return SimpleNamespace(remote=self._track)

    @property
    def end_tracking(self) -> Any:
        def end(job: str) -> Any:
            self.ended.append(job)
            return answered(None)

        return SimpleNamespace(remote=end)

    def die(self) -> None:
        self.kept.clear()
        self.embedded.clear()

    def _track(self, call: TrackCall, frames: Any, state: TrackState | None, wait_s: float) -> Any:
        self.asked += 1
        outcome = self.before(self, call)
        if outcome is not None:
            return answered(outcome)
        response = asyncio.ensure_future(self._answer(call, frames, state))
        response.add_done_callback(self._note_cancelled)
        return response

    def _note_cancelled(self, response: Any) -> None:
        self.cancelled += response.cancelled()

    async def _answer(self, call: TrackCall, frames: Any, state: TrackState | None) -> Any:
        await asyncio.sleep(self.seconds)
        self.states_sent += bool(state and state.objects)
        state = state or self.kept.get((call.job, call.run, call.position))
        if state is None:
            return Wanted("state")
        hits = sum(index in self.embedded for index in call.frames)
        batch, fault = (frames or (None, None)) if hits < len(call.frames) else ([], None)
        if batch is None:
            return Wanted("frames")
        most = len(call.frames)
        for place, index in enumerate(call.frames):
            if index not in self.embedded and index not in batch:
                most = place
                break
        self.embedded.update(call.frames[:most])
        masks, state = follow(call, state, most)
        if self.remembers:
            step = -1 if state.reverse else 1
            self.kept[call.job, call.run, call.position + step * most] = state
        self.calls.append(call)
        fault = fault if most < len(call.frames) else None
        return TrackedFrames(tuple(masks), most, state if call.wants_state else None, fault, hits, 0, 0.001, 0.002)


@dataclass
class Videos:
    """Stands for VideoCalls: gives frames by their numbers.

    Attributes:
        is_kept: whether the file is there.
        faults: the frames that cannot be given, and why.
        goes_after: after so many orders of frames the file is deleted, again and again.
    """

    is_kept: bool = True
    faults: dict[int, ServiceError] = field(default_factory=dict)
    goes_after: int = 10**9
    ordered: list[range] = field(default_factory=list)
    uploads: int = 0
    closed: list[str] = field(default_factory=list)
    readers: set[str] = field(default_factory=set)

    def frames(self, video_id: str, job: str, frames: range) -> Any:
        assert video_id == VIDEO_ID
        self.ordered.append(frames)
        self.readers.add(job)
        gone = VideoNotCached("video_id: is not kept")
        if not self.is_kept:
            return [], gone
        if len(self.ordered) % self.goes_after == 0:
            self.is_kept = False
            return list(frames[: len(frames) // 2]), gone
        for place, index in enumerate(frames):
            if index in self.faults:
                return list(frames[:place]), self.faults[index]
        return list(frames), None

    async def upload(self, video: RequestedVideo, deadline: Deadline) -> None:
        if video.source is None:
            raise VideoNotCached("video_id: the service does not keep this video; upload it (again)")
        self.uploads += 1
        self.is_kept = True

    def close(self, video_id: str, job: str) -> None:
        self.closed.append(job)


def overloaded() -> Overloaded:
    """Returns a refusal for so short a time as none names outside of tests."""
    error = Overloaded("full")
    error.retry_after_s = 0.01  # type: ignore[assignment]
    return error


PROMPTS = VideoPrompts(
    (TrackPrompt(1, 20, BOX), TrackPrompt(2, 31, BOX), TrackPrompt(1, 33, BOX), TrackPrompt(7, 20, BOX))
)


def job(
    model: Model,
    videos: Videos | None = None,
    prompts: VideoPrompts = PROMPTS,
    facts: VideoFacts | None = None,
    source: bool = True,
    timeout_s: float = 60,
    max_retries: int = 5,
    **which: Any,
) -> TrackJob:
    facts = facts or VideoFacts(64, 48, 60, 10.0, times=np.arange(60) / 10)
    config = RequestParserConfig(max_retries=max_retries)
    calls = ModelCalls({"m": cast(Any, model)}, cast(Any, None), config, RequestMetrics())
    calls.model = lambda *_: cast(Any, model)  # type: ignore[method-assign]
    request = TrackRequest(
        RequestedVideo(VIDEO_ID, io.BytesIO(b"a video") if source else None),
        facts,
        "m",
        prompts,
        plan(prompts, FrameRange(**which), facts),
        JobReplica(calls, "m", VIDEO_ID),
    )
    return TrackJob(request, calls, cast(VideoCalls, videos or Videos()), Deadline(timeout_s), StageTimes())


async def taken(masks: AsyncGenerator[FrameMasks, None], into: Masks | None = None) -> Masks:
    found: Masks = [] if into is None else into
    async for one in masks:
        found.append((one.frame_index, one.object_ids, tuple(one.scores.tolist())))
    return found


def at_once(request: TrackJob) -> Masks:
    """The masks as one call for each pass gives them."""
    state, found = TrackState(), []
    wanted = request._request
    for run in wanted.plan.passes:
        fresh = TrackState(wanted.plan.num_positions, run.is_reverse)
        state = fresh if run.starts_over else state.turned()
        prompts, removals = wanted.prompts.prompts, wanted.prompts.removals
        stops = sorted({0, len(run.frames), *(run.frames.index(index) for _, index in removals)})
        for start, stop in pairwise(stops):
            part = run.frames[start:stop]
            ended = frozenset(object_id for object_id, index in removals if index == part[0])
            given = run.prompts_on(part, prompts) if run.starts_over else ()
            call = TrackCall(VIDEO_ID, "all", run.position(part[0]), part, prompts=given, ended=ended)
            masks, state = follow(call, state, len(part))
            found += [(one.frame_index, one.object_ids, tuple(one.scores.tolist())) for one in masks]
    return found


class Clock:
    """The job's clock, on which each frame takes some time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def frames_of(self, seconds: float) -> Callable[[Model, TrackCall], None]:
        def before(model: Model, call: TrackCall) -> None:
            self.now += seconds * len(call.frames)

        return before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(job_module, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are sent again at once."""
    turn = asyncio.sleep
    fast = SimpleNamespace(**{**vars(asyncio), "sleep": lambda _: turn(0)})
    monkeypatch.setattr(retries_module, "asyncio", fast)


WAYS: list[dict[str, Any]] = [
    *({"direction": direction} for direction in DIRECTIONS),
    *({"direction": direction, "max_frames": 40, "start_frame": 40 if direction == "backward" else 12}
      for direction in DIRECTIONS),
]  # fmt: skip


# ---- masks


@pytest.mark.parametrize("which", WAYS)
async def test_every_frame_comes_once_and_in_order(which: dict[str, Any]) -> None:
    model = Model()
    request = job(model, **which)
    found = await taken(request.masks())
    assert found == at_once(request)
    frames = [index for run in request._request.plan.passes for index in run.frames]
    assert [index for call in model.calls for index in call.frames] == frames
    assert len(found) == len(frames)
    # The state never had to be sent: each call goes on from what the replica keeps, but for the second pass.
    assert model.states_sent == len(request._request.plan.passes) - 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("which", WAYS)
async def test_replicas_that_die_at_any_moment_change_no_mask(which: dict[str, Any], seed: int, clock: Clock) -> None:
    chance = random.Random(seed)

    def before(model: Model, call: TrackCall) -> Any:
        # Chunks of all sizes, so that what is followed again ends before, at and after what was given.
        clock.now += chance.choice([0.01, 0.1, 0.3]) * len(call.frames)
        fate = chance.random()
        if fate < 0.35:
            model.die()
        return RayActorError() if fate < 0.1 else None

    model = Model(before)
    request = job(model, **which, max_retries=10)
    assert await taken(request.masks()) == at_once(request)


@pytest.mark.parametrize("stride", [2, 3, 7])
async def test_steps_and_deaths(stride: int) -> None:
    prompts = VideoPrompts((TrackPrompt(1, 21, BOX), TrackPrompt(2, 21 + stride, BOX)))
    for direction in DIRECTIONS:
        chance = random.Random(stride)
        model = Model(lambda model, _, chance=chance: model.die() if chance.random() < 0.4 else None)  # type: ignore[misc]
        start = 21 + stride if direction == "backward" else 21
        request = job(model, prompts=prompts, stride=stride, direction=direction, start_frame=start)
        assert await taken(request.masks()) == at_once(request)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("seed", range(4))
async def test_removed_objects_end_where_they_were_removed(direction: str, seed: int) -> None:
    chance = random.Random(seed)
    places = [10, 16, 17, 18, 30]
    if direction == "backward":
        places = [59 - place for place in places]
    first, second, third, fourth, last = places
    prompts = VideoPrompts(
        (TrackPrompt(1, first, BOX), TrackPrompt(2, first, BOX), TrackPrompt(3, first, BOX), TrackPrompt(1, last, BOX)),
        ((1, second), (2, third), (3, fourth)),
    )
    model = Model(lambda model, _: model.die() if chance.random() < 0.4 * (seed > 0) else None)
    request = job(model, prompts=prompts, direction=direction)
    found = await taken(request.masks())
    assert found == at_once(request)
    way = 1 if direction == "forward" else -1
    ids = {index: objects for index, objects, _ in found}
    assert [ids.get(second - way), ids.get(second), ids.get(third), ids.get(fourth), ids.get(last)] == [
        (1, 2, 3),
        (2, 3),
        (3,),
        None,
        (1,),
    ]


@pytest.mark.parametrize("seconds", [0.0, 0.3])
async def test_replicas_that_keep_no_state_only_cost_time(seconds: float, clock: Clock) -> None:
    """As one whose memory for states is too small, or is taken by other jobs: each call finds nothing.

    Slow frames are chunks of their own.
    """
    model = Model(clock.frames_of(seconds), remembers=False)
    request = job(model)
    assert await taken(request.masks()) == at_once(request)
    assert model.asked < 250


async def test_the_state_comes_back_less_often_again_when_none_was_lost_for_a_while(clock: Clock) -> None:
    frame_s = clock.frames_of(0.6)

    def before(model: Model, call: TrackCall) -> None:
        frame_s(model, call)
        if call.frames[0] < 60:
            model.die()

    model, facts = Model(before), VideoFacts(64, 48, 200, 10.0)
    request = job(model, prompts=VideoPrompts((TrackPrompt(1, 0, BOX),)), facts=facts)
    assert await taken(request.masks()) == at_once(request)
    reached = [call.frames[-1] for call in model.calls if call.wants_state]
    # Each chunk is a frame. While replicas die, the state comes with every one of them.
    assert set(range(40, 60)) <= set(reached)
    # It is lost four times before that, and has to be there for eight chunks to make up for each.
    gaps = [second - first for first, second in pairwise(reached) if first >= 60 + 4 * RECOVERY]
    assert len(gaps) >= 5
    assert set(gaps[1:]) == {STATE_EVERY}


async def test_replicas_that_keep_no_state_are_sent_it_as_often_at_the_end_as_before(clock: Clock) -> None:
    facts = VideoFacts(64, 48, 120, 10.0)
    model = Model(clock.frames_of(0.6), remembers=False)
    await taken(job(model, prompts=VideoPrompts((TrackPrompt(1, 0, BOX),)), facts=facts).masks())
    assert all(call.wants_state for call in model.calls[-60:])


async def test_frames_have_their_times() -> None:
    times = [one.time_s async for one in job(Model()).masks()]
    assert times == pytest.approx([index / 10 for index in range(20, 60)])
    facts = VideoFacts(64, 48, 60, None)
    assert {one.time_s async for one in job(Model(), facts=facts).masks()} == {None}


# ---- chunks


async def test_chunks_grow_from_one_frame_to_the_most() -> None:
    model = Model()
    prompts = VideoPrompts((TrackPrompt(1, 0, BOX),))
    await taken(job(model, prompts=prompts).masks())
    assert [len(call.frames) for call in model.calls] == [1, 2, 4, 8, MAX_CHUNK, MAX_CHUNK, 13]


@pytest.mark.parametrize(("seconds", "most"), [(0.6, 1), (0.3, 1), (0.2, 2), (0.09, 5), (0.01, MAX_CHUNK)])
async def test_slow_frames_make_small_chunks(seconds: float, most: int, clock: Clock) -> None:
    model = Model(clock.frames_of(seconds))
    await taken(job(model).masks())
    assert max(len(call.frames) for call in model.calls) == most


async def test_chunks_of_large_frames_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = VideoFacts(64, 48, 60, 10.0)
    bytes_of_frame = 3 * 64 * 48 + 3 * 4 * 256 * 256
    for frames in (0, 1, 5):
        monkeypatch.setattr(job_module, "CHUNK_BYTES", frames * bytes_of_frame)
        model = Model()
        await taken(job(model, facts=facts).masks())
        assert max(len(call.frames) for call in model.calls) == max(1, frames)


async def test_the_state_comes_back_now_and_then_and_for_the_other_direction() -> None:
    for direction in DIRECTIONS:
        model = Model()
        await taken(job(model, direction=direction).masks())
        since, passes = 0, {call.run for call in model.calls}
        first = {call.run: call for call in reversed(model.calls)}
        for call, following in zip(model.calls, [*model.calls[1:], None], strict=True):
            since += len(call.frames)
            turns = following is not None and following.run != call.run
            assert call.wants_state == (since >= STATE_EVERY or turns or call is first[call.run])
            since = 0 if call.wants_state else since
        assert len(passes) == (2 if direction == "both" else 1)


async def test_frames_that_are_remembered_are_not_ordered() -> None:
    videos, model = Videos(), Model(embedded=set(range(60)))
    await taken(job(model, videos).masks())
    # Only before it is known.
    assert len(videos.ordered) == 1
    model.embedded -= set(range(40, 60))
    videos.ordered.clear()
    request = job(model, videos)
    assert await taken(request.masks()) == at_once(request)
    assert sorted({index for frames in videos.ordered[1:] for index in frames} & set(range(40, 60))) == [*range(40, 60)]


# ---- files that are gone, and faults


@pytest.mark.parametrize("which", WAYS)
async def test_a_file_that_goes_is_sent_again(which: dict[str, Any]) -> None:
    videos = Videos(is_kept=False, goes_after=4)
    request = job(Model(), videos, **which)
    assert await taken(request.masks()) == at_once(request)
    assert videos.uploads >= 2


async def test_a_file_that_goes_and_was_not_sent_ends_the_job_after_the_frames_before() -> None:
    videos = Videos(goes_after=4)
    request = job(Model(), videos, source=False)
    found: Masks = []
    with pytest.raises(VideoNotCached, match="upload it"):
        await taken(request.masks(), found)
    # Of the fourth chunk, of eight frames, half were there.
    assert found == at_once(request)[: 1 + 2 + 4 + 4]


async def test_a_file_that_is_never_there_is_not_sent_for_ever() -> None:
    videos = Videos(goes_after=1)
    with pytest.raises(Unavailable, match="safe to send it again"):
        await taken(job(Model(), videos).masks())
    assert videos.uploads <= job_module.TRIES


@pytest.mark.parametrize("error", [VideoNotCached("video: had to make room"), overloaded()])
async def test_a_file_that_cannot_be_sent_at_first_is_sent_later(error: ServiceError) -> None:
    errors: list[ServiceError] = [error]

    class Full(Videos):
        async def upload(self, video: RequestedVideo, deadline: Deadline) -> None:
            if errors:
                raise errors.pop()
            await super().upload(video, deadline)

    videos = Full(goes_after=4)
    request = job(Model(), videos)
    assert await taken(request.masks()) == at_once(request)
    assert not errors
    assert videos.uploads >= 1


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("broken", [20, 21, 33, 40, 15])
async def test_a_fault_comes_after_the_frames_before_it(direction: str, broken: int) -> None:
    videos = Videos(faults={broken: InvalidVideo(f"video: frame {broken} cannot be decoded")})
    request = job(Model(), videos, direction=direction)
    expected, found = at_once(request), Masks()
    if broken not in [index for run in request._request.plan.passes for index in run.frames]:
        assert await taken(request.masks()) == expected
        return
    with pytest.raises(InvalidVideo, match=f"frame {broken} "):
        await taken(request.masks(), found)
    assert found == expected[: [index for index, *_ in expected].index(broken)]


async def test_a_job_waits_while_the_model_is_overloaded() -> None:
    outcomes = {25: [overloaded()], 31: [overloaded()]}
    model = Model(lambda _, call: next((outcomes[index].pop() for index in call.frames if outcomes.get(index)), None))
    request = job(model)
    assert await taken(request.masks()) == at_once(request)
    assert outcomes == {25: [], 31: []}


async def test_a_job_ends_if_the_model_stays_overloaded() -> None:
    model = Model(lambda *_: Overloaded("full"))
    with pytest.raises(Overloaded):
        await taken(job(model, timeout_s=0.5).masks())


async def test_an_error_of_the_model_is_the_jobs() -> None:
    for error, expected in (
        (InvalidPrompt("prompts: frame 31 is not there"), InvalidPrompt),
        (ValueError("a bug"), ValueError),
    ):
        videos = Videos()
        model = Model(lambda model, call, error=error: error if 31 in call.frames else None)  # type: ignore[misc]
        found: Masks = []
        with pytest.raises(expected):
            await taken(job(model, videos).masks(), found)
        assert [index for index, *_ in found] == list(range(20, 20 + len(found)))
        assert 1 <= len(found) <= 11
        assert len(videos.closed) == 1


async def test_replicas_that_die_every_time_end_the_job() -> None:
    model = Model(lambda model, call: RayActorError() if call.frames[-1] > 30 else None)
    with pytest.raises(Unavailable, match="safe to send it again"):
        await taken(job(model, max_retries=2).masks())


async def test_a_file_that_is_cut_off_ends_with_an_error() -> None:
    facts = VideoFacts(64, 48, 60, 10.0, is_cut=True)
    for which, is_error in (
        ({}, True),
        ({"direction": "both"}, True),
        ({"direction": "backward"}, False),
        ({"max_frames": 40}, False),
        ({"max_frames": 41}, True),
    ):
        request = job(Model(), facts=facts, **cast(dict[str, Any], which))
        found: Masks = []
        if is_error:
            with pytest.raises(InvalidVideo, match=r"^video: frame 60 cannot be decoded: the file is cut off there"):
                await taken(request.masks(), found)
        else:
            await taken(request.masks(), found)
        assert found == at_once(request)


async def test_a_deadline_ends_the_job() -> None:
    model = Model(seconds=0.02)
    with pytest.raises(DeadlineExceeded):
        await taken(job(model, timeout_s=0.1).masks())
    assert model.asked < 10


# ---- callers that are slow, or leave


async def test_no_more_than_a_chunk_is_ahead_of_a_slow_caller() -> None:
    model = Model()
    masks = job(model).masks()
    for taken_frames in range(1, 30):
        await anext(masks)
        await settled()
        sizes = [len(call.frames) for call in model.calls]
        # The chunk that is being taken, and one more.
        before = 0
        for place, size in enumerate(sizes):  # noqa: B007
            before += size
            if before >= taken_frames:
                break
        assert len(sizes) <= place + 2
    await masks.aclose()


async def test_a_caller_that_leaves_cancels_what_runs() -> None:
    for seconds, cancelled in ((5.0, 1), (0.0, 0)):
        videos, model = Videos(), Model()
        masks = job(model, videos).masks()
        await anext(masks)
        model.seconds = seconds
        await settled()
        # The second chunk runs, or waits to be taken.
        asked, started = model.asked, time.monotonic()
        await masks.aclose()
        await settled()
        assert time.monotonic() - started < 1
        assert (model.asked, model.cancelled) == (asked, cancelled)
        assert videos.closed == list(videos.readers)


async def test_a_caller_that_is_cancelled_while_it_waits_cancels_what_runs() -> None:
    videos, model = Videos(), Model(seconds=5.0)
    waiting = asyncio.ensure_future(taken(job(model, videos).masks()))
    await settled()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await settled()
    assert (model.asked, model.cancelled, len(videos.closed)) == (1, 1, 1)


async def test_a_clean_up_that_is_cancelled_closes_the_reader_and_ends_the_job() -> None:
    videos, model = Videos(), Model()
    masks = job(model, videos).masks()
    await anext(masks)

    async def stubborn(*_: Any) -> Any:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await asyncio.sleep(5)

    model._answer = stubborn  # type: ignore[method-assign, assignment]
    await settled()
    closing = asyncio.ensure_future(masks.aclose())
    await settled()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await settled()
    assert (videos.closed, model.ended) == (list(videos.readers), list(videos.readers))


async def test_a_job_has_a_reader_of_its_own_and_closes_it() -> None:
    videos = Videos()
    for _ in range(2):
        await taken(job(Model(), videos, direction="both").masks())
    assert len(videos.readers) == 2
    assert set(videos.closed) == videos.readers
    assert len(videos.closed) == 2


async def test_where_the_time_went() -> None:
    request = job(Model())
    await taken(request.masks())
    seconds = request._times.seconds()
    chunks = 6
    assert set(seconds) == {"embed", "track", "queue"}
    assert seconds["track"] == pytest.approx(2 * seconds["embed"])
    assert seconds["embed"] <= 0.001 * (chunks + 1)
