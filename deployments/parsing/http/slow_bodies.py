"""Ends the slowest bodies while so many arrive that soon there would be no place for others."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SLOW_BYTES_PER_S = 16 * 1024
"""A body that comes at this rate or faster is never ended for the sake of others."""

GRACE_S = 1.0
"""Nor is one that began less than this ago."""

CHECK_S = 0.5


@dataclass(eq=False)
class Arrival:
    """One body that is arriving.

    Attributes:
        clock: the time-out for its arrival.
        began_at: when it began, by the event loop's clock, later by the seconds that it has waited for room.
        nbytes: how much has come.
        is_waiting: whether nothing is read of it now, since there is no room.
        was_ended: whether it was too slow.
    """

    clock: asyncio.Timeout
    began_at: float
    nbytes: int = 0
    is_waiting: bool = False
    was_ended: bool = False

    def rate(self, now: float) -> float:
        """Bytes a second so far."""
        return self.nbytes / max(now - self.began_at, CHECK_S)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the time for which the service does not read; neither does the clock run."""
        loop = asyncio.get_running_loop()
        since, when = loop.time(), self.clock.when() or loop.time()
        self.is_waiting = True
        self.clock.reschedule(None)
        try:
            yield
        finally:
            waited_s = loop.time() - since
            self.is_waiting = False
            self.began_at += waited_s
            self.clock.reschedule(when + waited_s)


class SlowBodies:
    """Counts the bodies that arrive at a replica, and ends slow ones while there are too many.

    A request has one of the replica's places from its first byte on, so that a few hundred clients that send a byte a
    second would keep all others out until their time-outs.

    Args:
        most: returns how many bodies may arrive at a time, whatever their rate.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._arriving: set[Arrival] = set()
        self._check: asyncio.TimerHandle | None = None

    @contextmanager
    def arrival(self, clock: asyncio.Timeout) -> Iterator[Arrival]:
        """Counts a body until the block ends.

        Args:
            clock: the time-out for its arrival, which runs out at once if the body is to be ended.
        """
        one = Arrival(clock, asyncio.get_running_loop().time())
        self._arriving.add(one)
        self._plan()
        try:
            yield one
        finally:
            self._arriving.discard(one)

    def _plan(self) -> None:
        if self._check is None and len(self._arriving) > self._most():
            self._check = asyncio.get_running_loop().call_later(CHECK_S, self._end_slow_ones)

    def _end_slow_ones(self) -> None:
        self._check = None
        now = asyncio.get_running_loop().time()
        # One whose clock has run out is about to leave; its clock cannot be set any more.
        arriving = [one for one in self._arriving if not one.clock.expired()]
        old = [one for one in arriving if not one.is_waiting and now - one.began_at >= GRACE_S]
        slow = sorted((one for one in old if one.rate(now) < SLOW_BYTES_PER_S), key=lambda one: one.rate(now))
        for one in slow[: max(0, len(arriving) - self._most())]:
            one.was_ended = True
            one.clock.reschedule(now)
        self._plan()
