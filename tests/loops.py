"""What async tests share."""

import asyncio
from collections.abc import Callable


async def settled() -> None:
    """Lets every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; the test's own limit ends a wait for what never comes."""
    while not condition():
        await asyncio.sleep(0.005)


class Clock:
    """Stands for the module `time` in a module whose seconds a test counts itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now
