"""Bounds how many bytes all requests of a replica hold in memory at a time: first come, first served."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from deployments.errors import Overloaded

RECENT = 0.2
"""Weight of the latest share in the average of how long shares are held."""


class ByteBudget:
    """A number of bytes that requests share.

    Args:
        limit: bytes.
        what: the cause of a full budget, for the message to requests that get no share.
        on_change: called with the number of bytes in use.
    """

    def __init__(self, limit: int, what: str, on_change: Callable[[int], None] = lambda _: None) -> None:
        self._limit = limit
        self._what = what
        self._on_change = on_change
        self._used = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._hold_s: float | None = None

    def set_limit(self, limit: int) -> None:
        """Sets a new limit and admits the waiting requests that it has room for."""
        self._limit = limit
        self._admit()

    def expected_wait_s(self, nbytes: int) -> float:
        """Estimates how many seconds a share of `nbytes` will wait, from how long recent shares were held.

        By Little's law, bytes are released at the rate limit / (average time that a share is held).
        """
        ahead = sum(share for share, turn in self._queue if not turn.done())
        short = self._used + ahead + nbytes - self._limit
        return max(0, short) / self._limit * (self._hold_s or 0.0)

    @asynccontextmanager
    async def share(self, nbytes: int, timeout_s: float) -> AsyncIterator[None]:
        """Holds a share of the budget while the block runs.

        Args:
            nbytes: size of the share; a size beyond the budget is cut to the budget.
            timeout_s: how long to wait for the share.

        Raises:
            Overloaded: the bytes are not expected to be free in time, or were not free in time.
        """
        nbytes = min(nbytes, self._limit)
        if (expected_s := self.expected_wait_s(nbytes)) > timeout_s:
            raise Overloaded(f"overloaded: {self._what}", math.ceil(expected_s))
        await self._acquire(nbytes, timeout_s)
        held_since = time.monotonic()
        try:
            yield
        finally:
            held_s = time.monotonic() - held_since
            self._hold_s = held_s if self._hold_s is None else self._hold_s + RECENT * (held_s - self._hold_s)
            self._used -= nbytes
            self._admit()

    async def _acquire(self, nbytes: int, timeout_s: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((nbytes, turn))
        self._admit()
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except TimeoutError as error:
            self._leave(nbytes, turn)
            raise Overloaded(f"overloaded: {self._what}") from error
        except asyncio.CancelledError:
            self._leave(nbytes, turn)
            raise

    def _leave(self, nbytes: int, turn: "asyncio.Future[None]") -> None:
        """Takes a request out of the queue; gives its bytes back if it was admitted in the same moment."""
        if turn.done() and not turn.cancelled():
            self._used -= nbytes
        self._admit()

    def _admit(self) -> None:
        while self._queue:
            nbytes, turn = self._queue[0]
            # If nothing is in use, the first request is admitted even beyond a limit that was lowered meanwhile.
            if not turn.done():
                if self._used and self._used + nbytes > self._limit:
                    break
                self._used += nbytes
                turn.set_result(None)
            self._queue.popleft()
        self._on_change(self._used)
