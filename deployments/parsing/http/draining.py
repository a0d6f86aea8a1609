"""Counting the HTTP requests under way, so that the service can end once they are answered."""

import asyncio
import time
from collections.abc import Callable


class InFlightRequests:
    """How many HTTP requests are under way, and whether more are let in.

    Args:
        on_change: told how many there are.
    """

    def __init__(self, on_change: Callable[[int], None] = lambda _: None) -> None:
        self.is_closed = False
        self._on_change = on_change
        self._under_way = 0

    def count(self, change: int) -> None:
        """One came (1), or is over (-1)."""
        self._under_way += change
        self._on_change(self._under_way)

    async def close(self, patience_s: float) -> int:
        """Lets nobody in any more, and waits for those who are inside; how many are left at the end."""
        self.is_closed = True
        until = time.monotonic() + patience_s
        while self._under_way and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self._under_way
