"""How the jobs of one model spread over its replicas; test_video_job_replica.py has what one job does."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from deployments.messages.track import TrackedFrames
from deployments.messages.video import affinity
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.video.job_replica import JobReplica
from deployments.settings import RequestParserConfig
from deployments.telemetry.metrics import RequestMetrics

VIDEO_ID = "a" * 64


@dataclass
class Replicas:
    """A model's replicas, with the names of their jobs. A call goes where its affinity hashes to."""

    jobs: list[set[str]] = field(default_factory=list)

    def handle(self, _: str, identifier: str) -> Any:
        key = affinity(identifier)
        # The video belongs to the first replica; other keys go anywhere.
        number = 0 if key == affinity(VIDEO_ID) else int(key, 16) % len(self.jobs)

        def begin(job: str) -> Any:
            self.jobs[number].add(job)
            return answered((f"replica {number}", len(self.jobs[number]) - 1))

        def end(job: str) -> Any:
            self.jobs[number].discard(job)
            return answered(None)

        return SimpleNamespace(
            begin_tracking=SimpleNamespace(remote=begin), end_tracking=SimpleNamespace(remote=end), number=number
        )


def answered(outcome: Any) -> Any:
    future = asyncio.get_running_loop().create_future()
    future.set_result(outcome)
    return future


def answer(number: int, others: int) -> TrackedFrames:
    return TrackedFrames((), 1, others=others, replica=f"replica {number}")


def replica_of(replicas: Replicas) -> JobReplica:
    calls = ModelCalls({"m": cast(Any, None)}, cast(Any, None), RequestParserConfig(), RequestMetrics())
    calls.model = replicas.handle  # type: ignore[method-assign, assignment]

    async def wake(*_: Any) -> None:
        return

    calls.wake = wake  # type: ignore[method-assign, assignment]
    return JobReplica(calls, "m", VIDEO_ID)


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
            await one.balance(answer(number, len(replicas.jobs[number]) - 1), Deadline(10))
            await asyncio.sleep(0)
    assert sorted(len(jobs) for jobs in replicas.jobs) == [2] * 10
    for one in begun_ones:
        # On one replica, and no other believes to have it.
        assert [number for number, jobs in enumerate(replicas.jobs) if one.job in jobs] == [cast(Any, one.model).number]


async def test_a_job_stays_where_no_other_replica_has_two_jobs_fewer() -> None:
    replicas = Replicas([{"a"}, {"b"}, {"c"}])
    replica = await begun(replicas)
    for _ in range(20):
        await replica.balance(answer(0, 1), Deadline(10))
        await asyncio.sleep(0)
    assert [len(jobs) for jobs in replicas.jobs] == [2, 1, 1]


async def test_the_only_replica_has_all_jobs() -> None:
    replicas = Replicas([{"a", "b", "c"}])
    replica = await begun(replicas)
    await replica.balance(answer(0, 3), Deadline(10), looks=3)
    replica.end()
    await asyncio.sleep(0)
    assert replicas.jobs == [{"a", "b", "c"}]


async def test_a_job_that_is_alone_does_not_look_around() -> None:
    replicas = Replicas([set(), set()])
    replica = await begun(replicas)
    replicas.handle = None  # type: ignore[assignment, method-assign]
    await replica.balance(answer(0, 0), Deadline(10), looks=3)
