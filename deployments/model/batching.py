"""The stages of a model, each with its queue: full batches under load, and a limit on how long a call may wait."""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial, wraps
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from deployments.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

RECENT = 0.3
"""Weight of the latest batch in the average."""

logger = logging.getLogger("ray.serve")


class Observer(Protocol):
    """Counts batches and queues."""

    def batch(self, stage: str, size: int) -> None:
        """Counts a batch of a stage."""

    def waiting(self, stage: str, count: int) -> None:
        """Sets the length of a stage's queue."""


class Admission:
    """Admits calls to a batch queue only while no batch is at work.

    Serve closes a batch when its wait is over, even while the batch before it is still at work. Under load, each call
    would so become a batch of its own, however many others queue behind it. Here, calls that arrive meanwhile wait
    outside, are admitted together when the batch is done, and form one batch again. A call that is cancelled outside
    is never admitted.

    Use: `async with admission: await batched_method(item)`, and `with admission.run():` around the work in the batch's
    own function.

    Args:
        size: the largest batch; may be changed at any time.
        on_wait: told how many calls wait outside, whenever that changes.
    """

    def __init__(self, size: int, on_wait: Callable[[int], None] = lambda _: None) -> None:
        self.size = size
        self._on_wait = on_wait
        self._inside = 0
        self._at_work = False
        self._closed = False
        self._batch_s: float | None = None
        self._outside: deque[asyncio.Future[None]] = deque()

    @contextmanager
    def run(self) -> Iterator[None]:
        """Marks a batch as at work: nothing more is admitted until it is done and all its calls have left."""
        self._at_work = self._closed = True
        began_at = time.monotonic()
        try:
            yield
        finally:
            self._at_work = False
            self.note_seconds(time.monotonic() - began_at)
            self._open()

    def note_seconds(self, batch_s: float) -> None:
        """Adds the time that a batch took to the average, by which waits are estimated."""
        self._batch_s = batch_s if self._batch_s is None else self._batch_s + RECENT * (batch_s - self._batch_s)

    @property
    def waiting(self) -> int:
        """How many calls wait outside."""
        return sum(not turn.done() for turn in self._outside)

    def expected_wait_s(self, announced: int = 0) -> float:
        """Estimates how long a new call would wait to be admitted, by how long batches took lately; 0 at first.

        Args:
            announced: how many calls will come before it.
        """
        # The batch at work counts, even if its calls were cancelled.
        ahead = max(self._inside, int(self._at_work)) + self.waiting + announced
        return (ahead + self.size - 1) // self.size * (self._batch_s or 0.0)

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
            # Cancelled at the very moment of being admitted.
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


class _Queue:
    """What stages have in common: an admission, and calls rejected early where the queue is too long for them."""

    def __init__(self, name: str, model_id: str, observer: Observer) -> None:
        self.name = name
        self.admission = Admission(1, partial(observer.waiting, name))
        self._model_id = model_id

    def check(self, wait_s: float, announced: int = 0) -> None:
        """Rejects now what would be rejected, or given up, after a long wait.

        Args:
            wait_s: how long the caller may wait.
            announced: how many calls will come before it.

        Raises:
            Overloaded: the queue is longer.
        """
        expected_s = self.admission.expected_wait_s(announced)
        if expected_s > wait_s:
            raise Overloaded(f"overloaded: the queue of {self._model_id} takes about {expected_s:.1f} s", expected_s)


class Stage(_Queue, Generic[Item, Result]):
    """One step of a model, such as the image encoder: batches of many requests' items, run on a thread of its own.

    Args:
        name: for the metrics and the thread.
        model_id: for messages.
        run: runs a batch; gives one result an item, or an Overloaded for an item that does not fit into memory.
        batched: a `@serve.batch` method that hands its items to `run_batch`.
        observer: counts batches and queues.
    """

    def __init__(
        self,
        name: str,
        model_id: str,
        run: Callable[[Sequence[Item]], Sequence[Result | Overloaded]],
        batched: Callable[[Item], Awaitable[tuple[Result | Overloaded, float]]],
        observer: Observer,
    ) -> None:
        super().__init__(name, model_id, observer)
        self._run = run
        self._batched: Any = batched
        self._observer = observer
        # One thread: torch parallelises inside an operation.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def configure(self, max_batch_size: int, batch_wait_timeout_s: float = 0.0) -> None:
        """Takes new limits of a batch; they hold from the next batch on."""
        self.admission.size = max_batch_size
        self._batched.set_max_batch_size(max_batch_size)
        self._batched.set_batch_wait_timeout_s(batch_wait_timeout_s)

    async def submit(self, item: Item) -> tuple[Result, float]:
        """Queues an item.

        Returns:
            Its result, and the seconds that its batch ran.

        Raises:
            Overloaded: the item does not fit into the device's memory.
        """
        async with self.admission:
            result, seconds = await self._batched(item)
        if isinstance(result, Overloaded):
            raise result
        return result, seconds

    async def run_batch(self, items: list[Item]) -> list[tuple[Result | Overloaded, float]]:
        """Runs a batch on the stage's thread; each result comes with the seconds that the batch ran."""
        self._observer.batch(self.name, len(items))
        with self.admission.run():
            results, seconds = await self.on_thread(self._run, items)
        return [(result, seconds) for result in results]

    async def on_thread(self, run: Callable[..., T], *arguments: Any) -> tuple[T, float]:
        """Runs a function on the stage's thread, between two batches.

        Returns:
            What the function returns, and the seconds that it took.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, _timed, run, *arguments)


class Turns(_Queue):
    """Long jobs, one at a time.

    Args:
        name: for the metrics.
        model_id: for messages.
        max_waiting: how many jobs may wait for their turn.
        observer: counts the queue.
    """

    def __init__(self, name: str, model_id: str, max_waiting: int, observer: Observer) -> None:
        super().__init__(name, model_id, observer)
        self._max_waiting = max_waiting

    @asynccontextmanager
    async def turn(self, until: float) -> AsyncIterator[None]:
        """Waits for the turn of the job inside.

        Args:
            until: `time.monotonic()` at the caller's deadline.

        Raises:
            Overloaded: the turn would not come in time, or did not.
        """
        if self.admission.waiting >= self._max_waiting:
            raise Overloaded("overloaded: too many requests for everything wait for their turn")
        self.check(until - time.monotonic())
        async with AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await turn.enter_async_context(self.admission)
            except TimeoutError as error:
                raise Overloaded("overloaded: other requests for everything take too long") from error
            with self.admission.run():
                yield


def overload_returned(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T | Overloaded]]:
    """Makes a replica's method return the Overloaded that it raises; the caller's side raises it again (retries.py).

    Serve logs each exception that leaves a replica with its traceback, twice, and Ray writes it down once more. That
    holds the GIL for milliseconds, which the model lacks just when most calls are rejected.
    """

    @wraps(method)
    async def answering(*arguments: P.args, **options: P.kwargs) -> T | Overloaded:
        try:
            return await method(*arguments, **options)
        except Overloaded as rejection:
            # The traceback would keep the request's pixels alive until a garbage collection.
            return rejection.with_traceback(None)

    return answering


def _timed(run: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    started = time.perf_counter()
    try:
        return run(*arguments), time.perf_counter() - started
    # Every error goes on to the caller, unless nothing would work here any more.
    except Exception as error:
        _exit_if_device_is_lost(error)
        raise


def _exit_if_device_is_lost(error: Exception) -> None:
    """Exits if the GPU is lost: callers retry elsewhere at once, and Serve restarts the replica."""
    # Imported here: it brings torch, which is loaded by now; app.py imports this file only to draw the graph.
    from deployments.model.devices import is_device_lost

    if is_device_lost(error):
        logger.critical("this replica exits, since its device is lost: %s", error)
        logging.shutdown()
        os._exit(1)
