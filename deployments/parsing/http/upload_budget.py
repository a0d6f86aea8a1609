"""Bounds what all bodies that arrive at a replica hold together, in memory and on disk."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from deployments.errors import Overloaded
from deployments.parsing.http.slow_bodies import Arrival, SlowBodies

IN_MEMORY_BYTES = 128 * 1024
"""A file of a body that is larger goes to disk."""

RETRY_AFTER_S = 5


class Line:
    """The large bodies that are arriving, the oldest first, whatever budgets they hold."""

    def __init__(self) -> None:
        self._bodies: dict[object, None] = {}

    def join(self, body: object) -> None:
        """Puts a body at the end, unless it stands in the line."""
        self._bodies[body] = None

    def leave(self, body: object) -> None:
        """Takes a body out."""
        self._bodies.pop(body, None)

    def may_wait(self, body: object) -> bool:
        """Returns whether a body is large, and not the oldest."""
        return body in self._bodies and next(iter(self._bodies)) is not body


class Held:
    """What one request's body holds of a budget. `add` may be called from any thread.

    Args:
        budget: the budget.
        body: the body, in the line.
    """

    def __init__(self, budget: "UploadBudget", body: object) -> None:
        self._budget = budget
        self.body = body
        self.nbytes = 0
        self.has_arrived = self.is_over = False

    def add(self, nbytes: int) -> None:
        """Counts bytes that have arrived."""
        self._budget.count(self, nbytes)

    def has_room(self) -> bool:
        """Returns whether more of this body may be read."""
        return self._budget.has_room_for(self)

    async def room(self) -> None:
        """Returns once more of this body may be read.

        Raises:
            Overloaded: there was no room in time.
        """
        await self._budget.wait_for_room(self)

    def arrived(self) -> None:
        """Notes that the body has arrived as a whole: it holds what it holds, but another one is the oldest."""
        self._budget.arrived(self)


class UploadBudget:
    """A number of bytes that bodies share while they arrive and until their requests are answered.

    How large a body is cannot be known before it has arrived, so it is counted as it comes; if the budget is full, its
    reading stops. The oldest large body always goes on: bodies that wait for each other would all stand still.

    Args:
        limit: returns the bytes.
        what: what is full, for the message to requests that wait in vain.
        max_wait_s: returns how many seconds a body may wait.
        line: that of all budgets of the replica; None is one of its own.
    """

    def __init__(
        self, limit: Callable[[], int], what: str, max_wait_s: Callable[[], float], line: Line | None = None
    ) -> None:
        self._limit = limit
        self._what = what
        self._max_wait_s = max_wait_s
        self._line = line or Line()
        self._total = 0
        self._lock = Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def nbytes(self) -> int:
        """How many bytes are held now."""
        return self._total

    @contextmanager
    def share(self, body: object | None = None) -> Iterator[Held]:
        """Gives a request its part, until the block ends.

        Args:
            body: the body, in the line; None is one that holds of this budget only.
        """
        held = Held(self, body or object())
        try:
            yield held
        finally:
            with self._lock:
                # A thread that still reads what has arrived of a cancelled request counts nothing from here on.
                held.is_over = True
                self._total -= held.nbytes
            self.arrived(held)

    def arrived(self, held: Held) -> None:
        """See Held.arrived."""
        with self._lock:
            held.has_arrived = True
            self._line.leave(held.body)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def count(self, held: Held, nbytes: int) -> None:
        """Adds to what a body holds."""
        with self._lock:
            if held.is_over:
                return
            held.nbytes += nbytes
            self._total += nbytes
            # The last bytes of a file in JSON are decoded when all has arrived.
            if held.nbytes > IN_MEMORY_BYTES and not held.has_arrived:
                self._line.join(held.body)

    def has_room_for(self, held: Held) -> bool:
        """See Held.has_room. A small body always has: others that hold much must not keep it out."""
        return self._total <= self._limit() or not self._line.may_wait(held.body)

    async def wait_for_room(self, held: Held) -> None:
        """See Held.room."""
        try:
            async with asyncio.timeout(self._max_wait_s()):
                while not self.has_room_for(held):
                    waiting = asyncio.get_running_loop().create_future()
                    self._waiting.add(waiting)
                    try:
                        await waiting
                    finally:
                        self._waiting.discard(waiting)
        except TimeoutError as error:
            raise Overloaded(f"overloaded: {self._what}", RETRY_AFTER_S) from error


@dataclass(frozen=True)
class UploadBudgets:
    """The budgets of a replica's bodies.

    Attributes:
        text: memory for the texts of fields, and for files that are too small for the disk.
        files: disk for files.
        slow: ends slow bodies.
    """

    text: UploadBudget
    files: UploadBudget
    slow: SlowBodies

    @contextmanager
    def share(self) -> Iterator["Upload"]:
        """Gives a request its part of both, until the block ends."""
        body = object()
        with self.text.share(body) as text, self.files.share(body) as files:
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

    def add_to_file(self, size: int, nbytes: int) -> None:
        """Counts bytes of a file, which stays in memory while it is small.

        Args:
            size: of the file so far.
            nbytes: what has come.
        """
        self.files.add(nbytes)
        self.text.add(min(nbytes, max(0, IN_MEMORY_BYTES - size)))

    async def in_turn(self, stream: AsyncIterator[bytes], arrival: Arrival) -> AsyncIterator[bytes]:
        """Yields a body's pieces, each once there is room for it.

        Args:
            stream: the body.
            arrival: of the body, whose clock does not run while it waits for room.

        Raises:
            Overloaded: there was none in time.
        """
        async for piece in stream:
            arrival.nbytes += len(piece)
            # An empty piece is the end, which needs no room.
            for held in (self.text, self.files):
                if piece and not held.has_room():
                    with arrival.waiting():
                        await held.room()
            yield piece
        self.text.arrived()
        self.files.arrived()
