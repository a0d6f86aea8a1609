"""What a model replica remembers of the images it has seen: LRU bounded by bytes, with single flight.

An image that many requests ask for at the same moment costs one upload and one run of the encoder. The first request
that misses is *elected* to send the pixels; the others wait for what becomes of them. Needs no Ray and no torch.
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
    """What can be remembered: it knows its size."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        ...


class Observer(Protocol):
    """Who counts what happens in a cache."""

    def hit(self) -> None:
        """An image was remembered, or on its way: no run of the encoder."""

    def miss(self) -> None:
        """The encoder has to run."""

    def evicted(self) -> None:
        """An image made room for another, or its time was over."""

    def holds(self, entries: int, nbytes: int) -> None:
        """So many images, of so many bytes, are remembered now."""


V = TypeVar("V", bound=Sized)


class _SenderGone(Exception):
    """The flight that a request waited for will not arrive."""


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class _Flight(Generic[V]):
    """One image on its way into the cache.

    Attributes:
        sender: who was elected to send the pixels.
        started: True once the encoder's run is scheduled, False if the sender gave up.
        result: what all who wait get.
        task: the encoder's run; None while the pixels are on their way.
        waiting: how many wait for the result.
        forgotten: the image is not to be remembered when it is done.
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
        observer: told of hits, misses, evictions and size.
        max_waiting: how many may wait for elected senders' pixels, over all images. Beyond it a request is elected
            too: those who wait hold places in the replica, of which the senders need some.
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
        """Images whose elected senders have not sent their pixels yet."""
        return sum(flight.task is None for flight in self._flights.values())

    def configure(self, max_bytes: int, ttl_s: float | None, sender_timeout_s: float) -> None:
        """Takes new limits and applies them at once.

        Args:
            max_bytes: of all that is remembered; 0 remembers nothing.
            ttl_s: seconds after which an embedding is forgotten, however often it is used; None for never.
            sender_timeout_s: seconds that an elected sender has for its pixels before another is elected.
        """
        self._max_bytes, self._ttl_s, self._sender_timeout_s = max_bytes, ttl_s, sender_timeout_s
        self._evict()
        self._expire()
        if self._entries:
            self._expire_in_time()

    async def get(self, image_id: str, sender: str | None = "", admit: Callable[[], None] = lambda: None) -> V | None:
        """What is remembered of an image, waiting for it if it is on its way.

        Args:
            image_id: the image.
            sender: the caller, if it has pixels to send. None then elects it: it is to `compute` the image, or to
                `give_up`. Without a sender, None means no more than that the image is not there.
            admit: called before the caller is elected; what it raises leaves the image to others.

        Raises:
            Overloaded: the image is on its way, and no more callers may wait for it.
            Exception: what the encoder's run raised that the caller waited for, or `admit`.
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
                raise Overloaded("overloaded: too many requests wait for pixels that others send")
            # Where the sender is gone: look again, and be elected or wait for who is.
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
        """The image's embedding, from `run` unless it is remembered or another's run for it is under way.

        The run is a task of its own: it goes on if this caller is cancelled, for as long as anybody waits for it.

        Args:
            image_id: the image.
            run: computes it.
            sender: the caller.
            admit: called before the run; what it raises is for this caller alone, and another is elected in its place.

        Raises:
            Exception: what the run raised. All who wait get it, and nothing is remembered. Or what `admit` did.
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
            flight.task = asyncio.create_task(self._fly(image_id, flight, run))
            flight.started.set_result(True)
        else:
            self._observer.hit()
        return await self._wait(image_id, flight)

    def give_up(self, image_id: str, sender: str = "") -> None:
        """A sender has no pixels to send: if it was elected, one of those who wait is next."""
        flight = self._flights.get(image_id)
        if flight is not None and flight.sender == sender:
            self._give_up_sender(image_id, flight)

    def forget(self, image_id: str) -> bool:
        """Drops an image, also one that is on its way (who waits for it still gets it); whether there was one."""
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

    async def _fly(self, image_id: str, flight: _Flight[V], run: Callable[[], Awaitable[V]]) -> None:
        try:
            value = await run()
        # Not handled here but handed on, whatever it is, to those who wait.
        except Exception as error:
            flight.result.set_exception(error)
        else:
            # First of all: whatever befalls the cache, those who wait have their answer.
            flight.result.set_result(value)
            if not flight.forgotten:
                self._store(image_id, value)
        finally:
            # A run that was cancelled has left already, and another may have taken its place.
            if self._flights.get(image_id) is flight:
                del self._flights[image_id]

    async def _wait(self, image_id: str, flight: _Flight[V]) -> V:
        """The flight's result; _SenderGone if its sender gave up or took too long."""
        flight.waiting += 1
        try:
            if flight.task is None:
                await self._wait_for_pixels(flight)
            # Not awaited itself: that would cancel it together with this caller.
            await asyncio.wait({flight.result})
            return flight.result.result()
        finally:
            flight.waiting -= 1
            if flight.task is not None and flight.waiting == 0 and not flight.result.done():
                # Nobody is left who would read it. Out of the queue, if it has not reached the encoder.
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
        """Also without a request that would look: what is to be forgotten is not kept until somebody comes."""
        if self._ttl_s is not None:
            # A little later than that: a loop's timer may be early by its resolution.
            asyncio.get_running_loop().call_later(self._ttl_s + 0.02, self._expire)

    def _drop(self, image_id: str) -> bool:
        entry = self._entries.pop(image_id, None)
        if entry is None:
            return False
        self.nbytes -= entry[0].nbytes
        self._observer.holds(len(self), self.nbytes)
        return True
