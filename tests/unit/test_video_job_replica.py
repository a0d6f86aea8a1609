"""JobReplica: where a job goes, with replicas that only count their jobs."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from deployments.errors import ModelUnavailable, Overloaded, ServiceError
from deployments.messages.track import TrackedFrames
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


def job_on(first: Replica, *others: Replica) -> JobReplica:
    """A job that begins on the first replica, and looks at the others one after the other."""
    calls = ModelCalls({"m": cast(Any, None)}, cast(Any, None), RequestParserConfig(), RequestMetrics())
    replicas = iter((first, *others))
    calls.model = lambda *_: cast(Any, next(replicas))  # type: ignore[method-assign]

    async def awake(*_: Any) -> None:
        return None

    calls.wake = awake  # type: ignore[method-assign, assignment]
    return JobReplica(calls, "m", "a" * 64)


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
