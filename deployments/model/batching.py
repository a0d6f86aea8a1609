"""Full batches under load: requests enter a `@serve.batch` queue in rounds."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RECENT = 0.3
"""Weight of the latest round in the average."""


class Admission:
    """Admits requests to a batch queue only while no batch is at work.

    Serve closes a batch when its wait is over, also while the one before it is still at work. Under load each request
    would so become a batch of its own, however many others queue behind it. Here, those who come meanwhile wait
    outside, enter together when the batch is done, and are one batch again. Who is cancelled outside never enters.

    Use: `async with rounds: await batched_method(item)`, and `with rounds.run():` around the work in the batch's own
    function.

    Args:
        size: the largest batch; may be changed at any time.
        on_wait: told how many wait outside, whenever that changes.
    """

    def __init__(self, size: int, on_wait: Callable[[int], None] = lambda _: None) -> None:
        self.size = size
        self._on_wait = on_wait
        self._inside = 0
        self._at_work = False
        self._closed = False
        self._round_s: float | None = None
        self._outside: deque[asyncio.Future[None]] = deque()

    @contextmanager
    def run(self) -> Iterator[None]:
        """A batch is at work: the round is closed until it is done, whoever still waits, and all inside have left."""
        self._at_work = self._closed = True
        began_at = time.monotonic()
        try:
            yield
        finally:
            self._at_work = False
            run_s = time.monotonic() - began_at
            self._round_s = run_s if self._round_s is None else self._round_s + RECENT * (run_s - self._round_s)
            self._open()

    @property
    def waiting(self) -> int:
        """How many wait outside."""
        return sum(not turn.done() for turn in self._outside)

    def expected_wait_s(self, announced: int = 0) -> float:
        """How long one who comes now will wait for a turn, by how long rounds took lately; 0 while none has.

        Args:
            announced: how many will come before.
        """
        # One whose batch is at work may be gone, but not the batch.
        ahead = max(self._inside, int(self._at_work)) + self.waiting + announced
        return (ahead + self.size - 1) // self.size * (self._round_s or 0.0)

    async def __aenter__(self) -> None:
        if not self._closed and not self._outside and self._inside < self.size:
            self._inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outside.append(turn)
        self._on_wait(self.waiting)
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled in the very moment of being admitted.
            if not turn.cancelled():
                self._leave()
            self._on_wait(self.waiting)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        self._open()

    def _open(self) -> None:
        if self._inside or self._at_work:
            return
        self._closed = False
        while self._outside and self._inside < self.size:
            turn = self._outside.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
        self._on_wait(self.waiting)
