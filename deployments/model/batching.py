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
"""Weight of the latest batch in the average of batch times."""

logger = logging.getLogger("ray.serve")


class StageObserver(Protocol):
    """Records batches and the lengths of queues."""

    def batch(self, stage: str, size: int) -> None:
        """Counts a batch of a stage."""

    def waiting(self, stage: str, count: int) -> None:
        """Sets the length of a stage's queue."""


class Admission:
    """Admits calls to a batch queue only while no batch is running.

    Serve closes a batch when its wait is over, even while the batch before it is still running. Under load, each call
    would then become a batch of its own, even if many calls queue behind it. Here, calls that arrive during a batch
    wait outside, are admitted together when the batch is done, and form one batch. A call that is cancelled outside is
    never admitted.

    Use: `async with admission: await batched_method(item)`, and `with admission.running():` around the work in the
    batch's own function.

    Args:
        size: the largest batch; may be changed at any time.
        on_wait: called with the number of calls that wait outside, whenever that changes.
    """

    def __init__(self, size: int, on_wait: Callable[[int], None] = lambda _: None) -> None:
        self.size = size
        self._on_wait = on_wait
        self._inside = 0
        self._is_running = False
        self._closed = False
        self._batch_s: float | None = None
        self._outside: deque[asyncio.Future[None]] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Marks a batch as running: no call is admitted until the batch is done and all its calls have left."""
        self._is_running = self._closed = True
        began_at = time.monotonic()
        try:
            yield
        finally:
            self._is_running = False
            self.note_seconds(time.monotonic() - began_at)
            self._open()

    def note_seconds(self, batch_s: float) -> None:
        """Adds the seconds that a batch took to the average, from which waits are estimated."""
        self._batch_s = batch_s if self._batch_s is None else self._batch_s + RECENT * (batch_s - self._batch_s)

    @property
    def waiting(self) -> int:
        """The number of calls that wait outside."""
        return sum(not turn.done() for turn in self._outside)

    def expected_wait_s(self, announced: int = 0) -> float:
        """Estimates how many seconds a new call would wait, from the times of recent batches; 0 before the first batch.

        Args:
            announced: the number of calls that are not here yet, but will be admitted before the new one.
        """
        # The running batch counts, even if its calls were cancelled.
        ahead = max(self._inside, int(self._is_running)) + self.waiting + announced
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
            # The call was admitted at the very moment when it was cancelled.
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
        if self._inside or self._is_running:
            return
        self._closed = False
        while self._outside and self._inside < self.size:
            turn = self._outside.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
        self._on_wait(self.waiting)


class _Queue:
    """The base of Stage and Turns: admits calls, and rejects a call early if the queue is too long for it."""

    def __init__(self, name: str, model_id: str, observer: StageObserver) -> None:
        self.name = name
        self.admission = Admission(1, partial(observer.waiting, name))
        self._model_id = model_id

    def check(self, wait_s: float, announced: int = 0) -> None:
        """Rejects a call at once if its turn is not expected in time.

        Args:
            wait_s: seconds that the call may wait.
            announced: the number of calls that are not here yet, but will be admitted before it.

        Raises:
            Overloaded: the expected wait is longer than `wait_s`.
        """
        expected_s = self.admission.expected_wait_s(announced)
        if expected_s > wait_s:
            raise Overloaded(f"overloaded: the queue of {self._model_id} takes about {expected_s:.1f} s", expected_s)


class Stage(_Queue, Generic[Item, Result]):
    """One step of a model, such as the image encoder: batches of many requests' items, run on a thread of its own.

    Args:
        name: the stage's name in metrics, and its thread's name.
        model_id: the model's id, for messages.
        run: runs a batch; returns a result for each item, or an Overloaded for an item that does not fit into memory.
        batched: a `@serve.batch` method that hands its items to `run_batch`.
        observer: records batches and the length of the queue.
    """

    def __init__(
        self,
        name: str,
        model_id: str,
        run: Callable[[Sequence[Item]], Sequence[Result | Overloaded]],
        batched: Callable[[Item], Awaitable[tuple[Result | Overloaded, float]]],
        observer: StageObserver,
    ) -> None:
        super().__init__(name, model_id, observer)
        self._run = run
        self._batched: Any = batched
        self._observer = observer
        # One thread: torch parallelises inside an operation.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def configure(self, max_batch_size: int, batch_wait_timeout_s: float = 0.0) -> None:
        """Sets the limits of a batch, from the next batch on."""
        self.admission.size = max_batch_size
        self._batched.set_max_batch_size(max_batch_size)
        self._batched.set_batch_wait_timeout_s(batch_wait_timeout_s)

    async def submit(self, item: Item) -> tuple[Result, float]:
        """Queues an item, and waits for its result.

        Returns:
            The result, and the seconds that the item's batch ran.

        Raises:
            Overloaded: the item does not fit into the device's memory.
        """
        async with self.admission:
            result, seconds = await self._batched(item)
        if isinstance(result, Overloaded):
            raise result
        return result, seconds

    async def run_batch(self, items: list[Item]) -> list[tuple[Result | Overloaded, float]]:
        """Runs a batch on the stage's thread; returns each result with the seconds that the batch ran."""
        self._observer.batch(self.name, len(items))
        with self.admission.running():
            results, seconds = await self.on_thread(self._run, items)
        return [(result, seconds) for result in results]

    async def on_thread(self, run: Callable[..., T], *arguments: Any) -> tuple[T, float]:
        """Runs a function on the stage's thread, between two batches.

        Returns:
            The function's result, and the seconds that it took.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, _timed, run, *arguments)


class Turns(_Queue):
    """Lets long jobs run one at a time.

    Args:
        name: the queue's name in metrics.
        model_id: the model's id, for messages.
        max_waiting: the most jobs that may wait for their turn.
        observer: records the length of the queue.
    """

    def __init__(self, name: str, model_id: str, max_waiting: int, observer: StageObserver) -> None:
        super().__init__(name, model_id, observer)
        self._max_waiting = max_waiting

    @asynccontextmanager
    async def turn(self, until: float) -> AsyncIterator[None]:
        """Waits until no other job runs, and keeps other jobs waiting until the block ends.

        Args:
            until: `time.monotonic()` at the caller's deadline.

        Raises:
            Overloaded: too many jobs wait, or the turn would not come, or did not come, in time.
        """
        if self.admission.waiting >= self._max_waiting:
            raise Overloaded("overloaded: too many requests to segment everything wait for their turn")
        self.check(until - time.monotonic())
        async with AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await turn.enter_async_context(self.admission)
            except TimeoutError as error:
                raise Overloaded("overloaded: other requests to segment everything take too long") from error
            with self.admission.running():
                yield


def overload_returned(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T | Overloaded]]:
    """Makes a replica's method return the Overloaded that it raises; the caller's side raises it again (retries.py).

    When an exception leaves a replica, Serve logs it twice with its traceback, and Ray logs it once more. Logging holds
    the GIL for milliseconds, and takes them from the model just when most calls are rejected.
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
    # Every error is passed on to the caller, unless the device is lost.
    except Exception as error:
        _exit_if_device_is_lost(error)
        raise


def _exit_if_device_is_lost(error: Exception) -> None:
    """Exits if the GPU is lost: callers retry elsewhere at once, and Serve restarts the replica."""
    # Imported here, where torch is loaded anyway: app.py, which only builds the graph, imports this file without torch.
    from deployments.model.devices import is_device_lost

    if is_device_lost(error):
        logger.critical("this replica exits, since its device is lost: %s", error)
        logging.shutdown()
        os._exit(1)
