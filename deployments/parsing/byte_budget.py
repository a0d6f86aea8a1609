"""How many bytes may be in memory at a time, over all requests of a replica: first come, first served."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from deployments.errors import Overloaded

RECENT = 0.2
"""Weight of the latest share's time in the average."""


class ByteBudget:
    """A number of bytes that requests share.

    Args:
        limit: bytes.
        what: fills it, for the message of who gets no share.
        on_change: told how many bytes are taken.
    """

    def __init__(self, limit: int, what: str, on_change: Callable[[int], None] = lambda _: None) -> None:
        self._limit = limit
        self._what = what
        self._on_change = on_change
        self._used = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._hold_s: float | None = None

    def set_limit(self, limit: int) -> None:
        """Takes a new limit; who waits may now have a turn."""
        self._limit = limit
        self._admit()

    def expected_wait_s(self, nbytes: int) -> float:
        """How long a share will have to wait for its turn, by how long others were held lately.

        By Little's law: shares leave at the rate limit / (average time that one is held).
        """
        ahead = sum(share for share, turn in self._queue if not turn.done())
        short = self._used + ahead + nbytes - self._limit
        return max(0, short) / self._limit * (self._hold_s or 0.0)

    @asynccontextmanager
    async def share(self, nbytes: int, timeout_s: float) -> AsyncIterator[None]:
        """Holds so many bytes, at most all there are, while the block runs.

        Raises:
            Overloaded: they will not be free in time, or were not.
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
        """A request stops waiting, perhaps in the very moment of its turn."""
        if turn.done() and not turn.cancelled():
            self._used -= nbytes
        self._admit()

    def _admit(self) -> None:
        while self._queue:
            nbytes, turn = self._queue[0]
            # Whoever is first goes, even over a limit that was lowered, once nobody else is on the way.
            if not turn.done():
                if self._used and self._used + nbytes > self._limit:
                    break
                self._used += nbytes
                turn.set_result(None)
            self._queue.popleft()
        self._on_change(self._used)
