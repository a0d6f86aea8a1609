"""ByteBudget beside what test_answers.py shows of it: who would wait too long is told so at once."""

import asyncio
import time

import pytest

from deployments.errors import LONGEST_RETRY_AFTER_S, Overloaded
from deployments.parsing.byte_budget import ByteBudget
from tests.loops import settled


async def hold(budget: ByteBudget, nbytes: int, seconds: float) -> None:
    async with budget.share(nbytes, 60):
        await asyncio.sleep(seconds)


async def test_nobody_is_expected_to_wait_while_there_is_room() -> None:
    budget = ByteBudget(10, "full")
    await hold(budget, 10, 0.05)
    assert budget.expected_wait_s(10) == 0
    async with budget.share(4, 1):
        assert budget.expected_wait_s(6) == 0
        assert budget.expected_wait_s(7) > 0


async def test_who_would_wait_too_long_is_refused_at_once_and_told_when_to_come_back() -> None:
    budget = ByteBudget(10, "full")
    # Shares are held for some 0.2 s: ten of them in the queue take some two.
    await hold(budget, 10, 0.2)
    holders = [asyncio.create_task(hold(budget, 10, 0.2)) for _ in range(10)]
    await settled()
    assert budget.expected_wait_s(10) == pytest.approx(2, rel=0.5)
    started = time.monotonic()
    with pytest.raises(Overloaded, match="full") as refused:
        async with budget.share(10, 0.5):
            pass
    assert time.monotonic() - started < 0.1
    assert refused.value.retry_after_s in (1, 2, 3)
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
