"""ByteBudget beside what test_answers.py shows of it: who would wait too long is told so at once."""

import asyncio

import pytest

from deployments.errors import LONGEST_RETRY_AFTER_S, Overloaded
from deployments.parsing import byte_budget
from deployments.parsing.byte_budget import ByteBudget
from tests.loops import Clock, settled


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(byte_budget, "time", clock)
    return clock


async def test_nobody_is_expected_to_wait_while_there_is_room(clock: Clock) -> None:
    budget = ByteBudget(10, "full")
    async with budget.share(10, 60):
        clock.now += 0.05
    assert budget.expected_wait_s(10) == 0
    async with budget.share(4, 1):
        assert budget.expected_wait_s(6) == 0
        assert budget.expected_wait_s(7) > 0


async def test_who_would_wait_too_long_is_refused_at_once_and_told_when_to_come_back(clock: Clock) -> None:
    budget, go = ByteBudget(10, "full"), asyncio.Event()

    async def hold() -> None:
        async with budget.share(10, 60):
            await go.wait()

    # Shares are held for 0.2 s: ten of them in the queue take two.
    async with budget.share(10, 60):
        clock.now += 0.2
    holders = [asyncio.create_task(hold()) for _ in range(10)]
    await settled()
    assert budget.expected_wait_s(10) == pytest.approx(2)
    waited: list[bool] = []
    asyncio.get_running_loop().call_soon(waited.append, True)
    with pytest.raises(Overloaded, match="full") as refused:
        async with budget.share(10, 0.5):
            pass
    assert not waited
    assert refused.value.retry_after_s == 2
    go.set()
    async with budget.share(10, 10):
        pass
    await asyncio.gather(*holders)


def test_a_client_is_never_sent_away_for_longer_than_half_a_minute() -> None:
    assert Overloaded("full", 1e9).retry_after_s == LONGEST_RETRY_AFTER_S
    assert Overloaded("full").retry_after_s == 1


async def test_it_tells_how_much_is_taken() -> None:
    taken: list[int] = []
    budget = ByteBudget(10, "full", taken.append)
    async with budget.share(4, 1):
        assert taken[-1] == 4
    assert taken[-1] == 0
