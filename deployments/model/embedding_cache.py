"""The embeddings that a model replica remembers: an LRU cache bounded by bytes, with single flight.

An image that many requests need at the same moment costs one upload and one run of the encoder. The first request that
misses is *elected* to send the pixels; the others wait for the resulting embedding. Needs no Ray and no torch.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from deployments.errors import Overloaded


class Sized(Protocol):
    """A value that the cache can hold: it knows its size."""

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        ...


class Observer(Protocol):
    """Counts the hits, misses, evictions and size of a cache."""

    def hit(self) -> None:
        """Counts a request whose image was remembered or on its way: it needs no run of the encoder."""

    def miss(self) -> None:
        """Counts an image that the encoder has to run for."""

    def evicted(self) -> None:
        """Counts an image that was dropped to make room or had expired."""

    def holds(self, entries: int, nbytes: int) -> None:
        """Sets the number of remembered images and their size in bytes."""


V = TypeVar("V", bound=Sized)


class _SenderGone(Exception):
    """The elected sender gave up or took too long, so the flight that a request waited for will not arrive."""


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class _Flight(Generic[V]):
    """One image on its way into the cache.

    Attributes:
        sender: the caller that was elected to send the pixels.
        started: True once the encoder's run is scheduled, False if the sender gave up.
        result: the embedding, or the run's error, for all waiting callers.
        task: the encoder's run; None while the pixels are on their way.
        waiting: how many callers wait for the result.
        forgotten: the embedding is not to be remembered when it is done.
    """

    sender: str
    started: "asyncio.Future[bool]" = field(default_factory=_future)
    result: "asyncio.Future[V]" = field(default_factory=_future)
    task: "asyncio.Task[None] | None" = None
    waiting: int = 0
    forgotten: bool = False


class EmbeddingCache(Generic[V]):
    """Embeddings by image_id, the least recently used evicted first. For one event loop.

    Args:
        observer: counts hits, misses, evictions and size.
        max_waiting: how many callers may wait for elected senders' pixels, over all images. When so many wait, further
            callers are elected too: waiting callers hold places in the replica, and senders need places as well.
    """

    def __init__(self, observer: Observer, max_waiting: int) -> None:
        self.nbytes = 0
        self._observer = observer
        self._max_waiting = max_waiting
        self._max_bytes = 0
        self._ttl_s: float | None = None
        self._sender_timeout_s = 10.0
        self._waiting_for_pixels = 0
        self._entries: OrderedDict[str, tuple[V, float]] = OrderedDict()
        self._flights: dict[str, _Flight[V]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def promised(self) -> int:
        """The number of elected senders that have not sent their pixels yet."""
        return sum(flight.task is None for flight in self._flights.values())

    def configure(self, max_bytes: int, ttl_s: float | None, sender_timeout_s: float) -> None:
        """Takes new limits and applies them at once.

        Args:
            max_bytes: size of all remembered embeddings together; 0 remembers nothing.
            ttl_s: seconds after which an embedding is forgotten, no matter how often it is used; None for never.
            sender_timeout_s: seconds that an elected sender has to send its pixels before another is elected.
        """
        self._max_bytes, self._ttl_s, self._sender_timeout_s = max_bytes, ttl_s, sender_timeout_s
        self._evict()
        self._expire()
        if self._entries:
            self._expire_in_time()

    async def get(self, image_id: str, sender: str | None = "", admit: Callable[[], None] = lambda: None) -> V | None:
        """Returns the embedding of an image, waiting for it if it is on its way.

        Args:
            image_id: the image.
            sender: the caller, if it has pixels to send; None if it has none.
            admit: called before the caller is elected; if it raises, the caller is not elected.

        Returns:
            The embedding, or None if it is not there. A caller that is a sender and gets None is thereby elected: it
            must `compute` the image or `give_up`.

        Raises:
            Overloaded: the image is on its way, and no more callers may wait for it.
            Exception: the error of the encoder's run that the caller waited for, or of `admit`.
        """
        while True:
            value = self._lookup(image_id)
            if value is not None:
                self._observer.hit()
                return value
            flight = self._flights.get(image_id)
            if flight is None:
                if sender is not None:
                    admit()
                    self._new_flight(image_id, sender)
                return None
            if flight.task is None and self._waiting_for_pixels >= self._max_waiting:
                if sender is not None:
                    admit()
                    return None
                raise Overloaded("overloaded: too many requests wait for pixels from other requests")
            # If the sender is gone, look again: this caller is elected, or waits for the next elected one.
            with suppress(_SenderGone):
                value = await self._wait(image_id, flight)
                self._observer.hit()
                return value

    async def compute(
        self,
        image_id: str,
        run: Callable[[], Awaitable[V]],
        sender: str = "",
        admit: Callable[[], None] = lambda: None,
    ) -> V:
        """Returns the image's embedding, from `run` unless it is remembered or another caller's run is under way.

        The run is a task of its own: if this caller is cancelled, the run goes on as long as another caller waits.

        Args:
            image_id: the image.
            run: computes the embedding.
            sender: the caller.
            admit: called before the run; if it raises, only this caller gets the error, and another is elected.

        Raises:
            Exception: the error of the run, which all waiting callers get; nothing is remembered. Or that of `admit`.
        """
        value = self._lookup(image_id)
        if value is not None:
            self._observer.hit()
            return value
        flight = self._flights.get(image_id)
        if flight is None or flight.task is None:
            try:
                admit()
            except BaseException:
                self.give_up(image_id, sender)
                raise
            flight = flight or self._new_flight(image_id, sender)
            self._observer.miss()
            flight.task = asyncio.create_task(self._run(image_id, flight, run))
            flight.started.set_result(True)
        else:
            self._observer.hit()
        return await self._wait(image_id, flight)

    def give_up(self, image_id: str, sender: str = "") -> None:
        """Releases a sender that will not send its pixels: if it was elected, a waiting caller is elected next."""
        flight = self._flights.get(image_id)
        if flight is not None and flight.sender == sender:
            self._give_up_sender(image_id, flight)

    def forget(self, image_id: str) -> bool:
        """Drops an image, remembered or on its way; callers that wait for it still get it.

        Returns:
            Whether the image was there or on its way.
        """
        flight = self._flights.get(image_id)
        if flight is not None:
            flight.forgotten = True
        return self._drop(image_id) or flight is not None

    # ---- flights

    def _new_flight(self, image_id: str, sender: str) -> _Flight[V]:
        flight: _Flight[V] = _Flight(sender)
        self._flights[image_id] = flight
        asyncio.get_running_loop().call_later(self._sender_timeout_s, self._give_up_sender, image_id, flight)
        return flight

    def _give_up_sender(self, image_id: str, flight: _Flight[V]) -> None:
        if flight.task is None:
            self._abandon(image_id, flight)

    async def _run(self, image_id: str, flight: _Flight[V], run: Callable[[], Awaitable[V]]) -> None:
        try:
            value = await run()
        # Any error is passed on to the waiting callers, to be handled there.
        except Exception as error:
            flight.result.set_exception(error)
        else:
            # Set before the embedding is stored, so that the waiting callers get it even if storing fails.
            flight.result.set_result(value)
            if not flight.forgotten:
                self._store(image_id, value)
        finally:
            # The flight of a cancelled run was removed before, and another may have taken its place.
            if self._flights.get(image_id) is flight:
                del self._flights[image_id]

    async def _wait(self, image_id: str, flight: _Flight[V]) -> V:
        """Returns the flight's result; raises _SenderGone if its sender gave up or took too long."""
        flight.waiting += 1
        try:
            if flight.task is None:
                await self._wait_for_pixels(flight)
            # asyncio.wait, since awaiting the future itself would cancel it together with this caller.
            await asyncio.wait({flight.result})
            return flight.result.result()
        finally:
            flight.waiting -= 1
            if flight.task is not None and flight.waiting == 0 and not flight.result.done():
                # No caller is left to read the result; a run that has not reached the encoder leaves the queue.
                self._abandon(image_id, flight)
                flight.task.cancel()

    async def _wait_for_pixels(self, flight: _Flight[V]) -> None:
        self._waiting_for_pixels += 1
        try:
            await asyncio.wait({flight.started})
        finally:
            self._waiting_for_pixels -= 1
        if not flight.started.result():
            raise _SenderGone

    def _abandon(self, image_id: str, flight: _Flight[V]) -> None:
        if self._flights.get(image_id) is flight:
            del self._flights[image_id]
        if not flight.started.done():
            flight.started.set_result(False)

    # ---- entries

    def _lookup(self, image_id: str) -> V | None:
        self._expire()
        if image_id not in self._entries:
            return None
        self._entries.move_to_end(image_id)
        return self._entries[image_id][0]

    def _store(self, image_id: str, value: V) -> None:
        if value.nbytes > self._max_bytes:
            return
        self._drop(image_id)
        self._entries[image_id] = (value, time.monotonic())
        self.nbytes += value.nbytes
        self._evict()
        self._observer.holds(len(self), self.nbytes)
        self._expire_in_time()

    def _evict(self) -> None:
        while self.nbytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._observer.evicted()

    def _expire(self) -> None:
        if self._ttl_s is None:
            return
        latest = time.monotonic() - self._ttl_s
        for image_id in [image_id for image_id, (_, stored_at) in self._entries.items() if stored_at <= latest]:
            self._drop(image_id)
            self._observer.evicted()

    def _expire_in_time(self) -> None:
        """Schedules a check for expired entries, so that they are dropped even if no request comes."""
        if self._ttl_s is not None:
            # A little later than the entry expires, since a loop's timer may be early by its resolution.
            asyncio.get_running_loop().call_later(self._ttl_s + 0.02, self._expire)

    def _drop(self, image_id: str) -> bool:
        entry = self._entries.pop(image_id, None)
        if entry is None:
            return False
        self.nbytes -= entry[0].nbytes
        self._observer.holds(len(self), self.nbytes)
        return True
