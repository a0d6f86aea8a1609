"""Bounds what all bodies that arrive at a replica hold together, in memory and on disk."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from deployments.errors import Overloaded

IN_MEMORY_BYTES = 128 * 1024
"""A file of a body that is larger goes to disk."""

RETRY_AFTER_S = 5


class Held:
    """What one request's body holds of a budget. `add` may be called from any thread.

    Args:
        budget: the budget.
    """

    def __init__(self, budget: "UploadBudget") -> None:
        self._budget = budget
        self.nbytes = 0

    def add(self, nbytes: int) -> None:
        """Counts bytes that have arrived."""
        self._budget.count(self, nbytes)

    async def room(self) -> None:
        """Returns once the budget has room for more of this body.

        Raises:
            Overloaded: it had none in time.
        """
        await self._budget.wait_for_room(self)


class UploadBudget:
    """A number of bytes that bodies share while they arrive and until their requests are answered.

    How large a body is cannot be known before it has arrived, so it is counted as it comes; if the budget is full, its
    reading stops. The oldest large body always goes on: bodies that wait for each other would all stand still.

    Args:
        limit: returns the bytes.
        what: what is full, for the message to requests that wait in vain.
        max_wait_s: returns how many seconds a body may wait.
    """

    def __init__(self, limit: Callable[[], int], what: str, max_wait_s: Callable[[], float]) -> None:
        self._limit = limit
        self._what = what
        self._max_wait_s = max_wait_s
        self._total = 0
        # Of those that count, the oldest first.
        self._large: dict[Held, None] = {}
        self._lock = Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def nbytes(self) -> int:
        """How many bytes are held now."""
        return self._total

    @contextmanager
    def share(self) -> Iterator[Held]:
        """Gives a request its part, until the block ends."""
        held = Held(self)
        try:
            yield held
        finally:
            with self._lock:
                self._total -= held.nbytes
                self._large.pop(held, None)
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)

    def count(self, held: Held, nbytes: int) -> None:
        """Adds to what a body holds."""
        with self._lock:
            held.nbytes += nbytes
            self._total += nbytes
            if held.nbytes > IN_MEMORY_BYTES:
                self._large[held] = None

    async def wait_for_room(self, held: Held) -> None:
        """See Held.room. A small body never waits: others that hold much must not keep it out."""
        if self._has_room_for(held):
            return
        try:
            async with asyncio.timeout(self._max_wait_s()):
                while not self._has_room_for(held):
                    waiting = asyncio.get_running_loop().create_future()
                    self._waiting.add(waiting)
                    try:
                        await waiting
                    finally:
                        self._waiting.discard(waiting)
        except TimeoutError as error:
            raise Overloaded(f"overloaded: {self._what}", RETRY_AFTER_S) from error

    def _has_room_for(self, held: Held) -> bool:
        with self._lock:
            return self._total <= self._limit() or held not in self._large or next(iter(self._large)) is held


@dataclass(frozen=True)
class UploadBudgets:
    """The budgets of a replica's bodies.

    Attributes:
        text: memory for the texts of fields.
        files: disk for files.
    """

    text: UploadBudget
    files: UploadBudget

    @contextmanager
    def share(self) -> Iterator["Upload"]:
        """Gives a request its part of both, until the block ends."""
        with self.text.share() as text, self.files.share() as files:
            yield Upload(text, files)


@dataclass(frozen=True)
class Upload:
    """What one request's body holds.

    Attributes:
        text: of the memory for texts.
        files: of the disk for files.
    """

    text: Held
    files: Held

    async def in_turn(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yields a body's pieces, each once there is room for it.

        Raises:
            Overloaded: there was none in time.
        """
        async for piece in stream:
            await self.text.room()
            await self.files.room()
            yield piece
