"""Counts the HTTP requests under way, so that the service can end once they are answered."""

import asyncio
import time
from collections.abc import Callable


class InFlightRequests:
    """The number of HTTP requests under way, and whether more are admitted.

    Args:
        on_change: called with the number of requests under way.

    Attributes:
        is_closed: no more requests are admitted.
    """

    def __init__(self, on_change: Callable[[int], None] = lambda _: None) -> None:
        self.is_closed = False
        self._on_change = on_change
        self._under_way = 0

    def count(self, change: int) -> None:
        """Counts a request that has arrived (1) or ended (-1)."""
        self._under_way += change
        self._on_change(self._under_way)

    async def close(self, timeout_s: float) -> int:
        """Admits no more requests and waits for those under way, for at most `timeout_s` seconds.

        Returns:
            How many requests are still under way.
        """
        self.is_closed = True
        until = time.monotonic() + timeout_s
        while self._under_way and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self._under_way
