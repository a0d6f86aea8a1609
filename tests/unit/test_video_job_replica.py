"""JobReplica: where a job goes, with replicas that only count their jobs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deployments.errors import InvalidRequest, ModelUnavailable, Overloaded, ServiceError
from deployments.messages.track import TrackedFrames
from deployments.messages.video import affinity
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.video.job_replica import JobReplica
from deployments.settings import RequestParserConfig
from deployments.telemetry.metrics import RequestMetrics
from tests.loops import settled


class Replica:
    """A replica with jobs of others."""

    def __init__(self, name: str, others: int, error: ServiceError | None = None) -> None:
        self.name = name
        self.others = others
        self.error = error
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.begin_tracking = SimpleNamespace(remote=self._begin)
        self.end_tracking = SimpleNamespace(remote=self._end)

    async def _begin(self, job: str) -> Any:
        if self.error is not None:
            raise self.error
        self.begun.append(job)
        return self.name, self.others

    async def _end(self, job: str) -> None:
        self.ended.append(job)

    def answer(self) -> TrackedFrames:
        return TrackedFrames((), 1, others=self.others, replica=self.name)


class Slow(Replica):
    """A replica that takes a job on at once, and says so late."""

    def __init__(self, name: str, others: int) -> None:
        super().__init__(name, others)
        self.begin_tracking = SimpleNamespace(remote=self._begin_slowly)

    def _begin_slowly(self, job: str) -> Any:
        self.begun.append(job)
        return asyncio.get_running_loop().create_future()


def job_on(first: Replica, *others: Replica, on_end: Callable[[], None] = lambda: None) -> JobReplica:
    """A job that begins on the first replica, and looks at the others one after the other."""
    calls = ModelCalls({"m": cast(Any, None)}, cast(Any, None), RequestParserConfig(), RequestMetrics())
    replicas = iter((first, *others))
    calls.model = lambda *_: cast(Any, next(replicas))  # type: ignore[method-assign]

    async def awake(*_: Any) -> None:
        return None

    calls.wake = awake  # type: ignore[method-assign, assignment]
    return JobReplica(calls, "m", "a" * 64, on_end)


async def test_a_job_moves_to_a_replica_with_two_jobs_fewer() -> None:
    first, near, far = Replica("r1", 3), Replica("r2", 3), Replica("r3", 1)
    replica = job_on(first, near, far)
    await replica.begin(Deadline(5))
    await replica.balance(first.answer(), Deadline(5), looks=2)
    await settled()
    assert cast(Any, replica.model) is far
    assert (first.ended, near.ended, far.ended) == ([replica.job], [replica.job], [])


async def test_an_idle_replica_keeps_its_job() -> None:
    first = Replica("r1", 0)
    replica = job_on(first)
    await replica.begin(Deadline(5))
    await replica.balance(first.answer(), Deadline(5))
    assert cast(Any, replica.model) is first


@pytest.mark.parametrize("error", [Overloaded("full"), ModelUnavailable("none")])
async def test_a_look_at_a_replica_that_cannot_answer_ends_no_job(error: ServiceError) -> None:
    first = Replica("r1", 3)
    replica = job_on(first, *(Replica("r2", 0, error) for _ in range(3)))
    await replica.begin(Deadline(5))
    await replica.balance(first.answer(), Deadline(5))
    await settled()
    assert cast(Any, replica.model) is first
    assert first.ended == []


async def test_a_job_whose_replica_died_does_not_end_on_the_one_that_it_is_on_now() -> None:
    first, second = Replica("r1", 0), Replica("r2", 2)
    replica = job_on(first, second)
    await replica.begin(Deadline(5))
    # The first replica died: its calls go to the second, which is also the next to be looked at.
    await replica.balance(second.answer(), Deadline(5))
    await settled()
    assert second.begun == [replica.job]
    assert second.ended == []


async def test_a_job_ends_where_it_is() -> None:
    first = Replica("r1", 0)
    replica = job_on(first)
    await replica.begin(Deadline(5))
    replica.end()
    await settled()
    assert first.ended == [replica.job]


# ---- how many jobs spread over many replicas


@dataclass
class Replicas:
    """A model's replicas, with the names of their jobs. A call goes where its affinity hashes to."""

    jobs: list[set[str]] = field(default_factory=list)

    def handle(self, _: str, identifier: str) -> Any:
        key = affinity(identifier)
        # The video belongs to the first replica; other keys go anywhere.
        number = 0 if key == affinity("a" * 64) else int(key, 16) % len(self.jobs)

        def begin(job: str) -> Any:
            self.jobs[number].add(job)
            return done((f"replica {number}", len(self.jobs[number]) - 1))

        def end(job: str) -> Any:
            self.jobs[number].discard(job)
            return done(None)

        return SimpleNamespace(
            begin_tracking=SimpleNamespace(remote=begin), end_tracking=SimpleNamespace(remote=end), number=number
        )


def done(outcome: Any) -> Any:
    future = asyncio.get_running_loop().create_future()
    future.set_result(outcome)
    return future


def answer_of(number: int, others: int) -> TrackedFrames:
    return TrackedFrames((), 1, others=others, replica=f"replica {number}")


def replica_of(replicas: Replicas) -> JobReplica:
    calls = ModelCalls({"m": cast(Any, None)}, cast(Any, None), RequestParserConfig(), RequestMetrics())
    calls.model = replicas.handle  # type: ignore[method-assign, assignment]

    async def wake(*_: Any) -> None:
        return

    calls.wake = wake  # type: ignore[method-assign, assignment]
    return JobReplica(calls, "m", "a" * 64)


async def begun(replicas: Replicas) -> JobReplica:
    replica = replica_of(replicas)
    await replica.begin(Deadline(10))
    await asyncio.sleep(0)
    return replica


async def test_a_job_begins_where_its_video_is_remembered() -> None:
    replicas = Replicas([set(), {"other"}, set()])
    replica = await begun(replicas)
    assert replicas.jobs == [{replica.job}, {"other"}, set()]


async def test_jobs_of_one_video_spread_over_replicas() -> None:
    replicas = Replicas([set() for _ in range(10)])
    begun_ones = [await begun(replicas) for _ in range(20)]
    for _ in range(40):
        for one in begun_ones:
            number = cast(Any, one.model).number
            await one.balance(answer_of(number, len(replicas.jobs[number]) - 1), Deadline(10))
            await asyncio.sleep(0)
    assert sorted(len(jobs) for jobs in replicas.jobs) == [2] * 10
    for one in begun_ones:
        # On one replica, and no other believes to have it.
        assert [number for number, jobs in enumerate(replicas.jobs) if one.job in jobs] == [cast(Any, one.model).number]


async def test_a_job_stays_where_no_other_replica_has_two_jobs_fewer() -> None:
    replicas = Replicas([{"a"}, {"b"}, {"c"}])
    replica = await begun(replicas)
    for _ in range(20):
        await replica.balance(answer_of(0, 1), Deadline(10))
        await asyncio.sleep(0)
        assert cast(Any, replica.model).number == 0
    assert [len(jobs) for jobs in replicas.jobs] == [2, 1, 1]


async def test_the_only_replica_has_all_jobs() -> None:
    replicas = Replicas([{"a", "b", "c"}])
    replica = await begun(replicas)
    await replica.balance(answer_of(0, 3), Deadline(10), looks=3)
    replica.end()
    await asyncio.sleep(0)
    assert replicas.jobs == [{"a", "b", "c"}]


async def test_a_job_that_is_alone_does_not_look_around() -> None:
    replicas = Replicas([set(), set()])
    replica = await begun(replicas)
    replicas.handle = None  # type: ignore[assignment, method-assign]
    await replica.balance(answer_of(0, 0), Deadline(10), looks=3)


# ---- places


async def test_a_job_ends_once() -> None:
    first = Replica("r1", 0)
    ends: list[int] = []
    replica = job_on(first, on_end=lambda: ends.append(1))
    await replica.begin(Deadline(5))
    assert ends == []
    replica.end()
    replica.end()
    await settled()
    assert (first.ended, ends) == ([replica.job], [1])


@pytest.mark.parametrize("error", [Overloaded("full"), InvalidRequest("model_id: has no memory")])
async def test_a_job_that_is_refused_has_ended(error: ServiceError) -> None:
    ends: list[int] = []
    replica = job_on(Replica("r1", 0, error), on_end=lambda: ends.append(1))
    with pytest.raises(type(error)):
        await replica.begin(Deadline(5))
    assert ends == [1]


async def test_a_caller_that_leaves_while_its_job_begins_frees_the_place() -> None:
    """The replica has taken the job on, and its answer is on the way."""
    first = Slow("r1", 0)
    ends: list[int] = []
    replica = job_on(first, on_end=lambda: ends.append(1))
    beginning = asyncio.ensure_future(replica.begin(Deadline(5)))
    await settled()
    assert first.begun == [replica.job]
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    await settled()
    assert (first.ended, ends) == ([replica.job], [1])


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_look_that_does_not_come_to_its_end_leaves_no_job_behind(leaves: bool) -> None:
    first, other = Replica("r1", 3), Slow("r2", 0)
    replica = job_on(first, other)
    await replica.begin(Deadline(5))
    looking = asyncio.ensure_future(replica.balance(first.answer(), Deadline(5 if leaves else 0.05)))
    await settled()
    if leaves:
        looking.cancel()
    await asyncio.wait({looking})
    assert looking.cancelled() is leaves
    await settled()
    assert other.begun == other.ended == [replica.job]
    assert cast(Any, replica.model) is first
    assert first.ended == []
