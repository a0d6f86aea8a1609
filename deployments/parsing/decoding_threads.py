"""DecodingThreads: the few threads in which images are decoded, and those that wait for helper processes."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from deployments.errors import DeadlineExceeded, Overloaded
from deployments.parsing.deadline import Deadline
from deployments.pictures.isolated import NUM_HELPERS, TIMEOUT_S

T = TypeVar("T")

DECODING_THREADS = 4


class DecodingThreads:
    """Runs functions off the event loop, in two sets of threads.

    These few threads are used in place of asyncio's shared ones: a burst of large images must not delay health checks
    or fill the memory. Calls to helper processes, which may take a minute each, have threads of their own, as many as
    there are helpers: an everyday picture never waits behind them.

    Args:
        waiting_s: how long a call to a helper waits for its turn at most.
    """

    def __init__(self, waiting_s: float = TIMEOUT_S) -> None:
        self._everyday = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode-image")
        self._isolated = ThreadPoolExecutor(NUM_HELPERS, thread_name_prefix="call-helper")
        self._turns = asyncio.Semaphore(NUM_HELPERS)
        self._waiting_s = waiting_s

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Runs a function that calls no helper."""
        return await asyncio.get_running_loop().run_in_executor(self._everyday, partial(function, *args))

    async def run_isolated(
        self,
        deadline: Deadline | None,
        function: Callable[..., T],
        *args: Any,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Runs a function that calls a helper.

        Args:
            deadline: until when it may wait for its turn; None is no limit of its own.
            function: keeps the deadline itself once it runs.
            args: for the function.
            before: is awaited once the turn has come. What it takes does not wait for the turn with the function.

        Raises:
            Overloaded: its turn did not come in time.
            DeadlineExceeded: the deadline passed before.
            Exception: what `before` or the function raised.
        """
        left_s = self._waiting_s if deadline is None else min(self._waiting_s, deadline.remaining())
        try:
            await asyncio.wait_for(self._turns.acquire(), left_s)
        except TimeoutError as error:
            if deadline is not None and not deadline.remaining():
                raise DeadlineExceeded("the request's deadline passed while its image waited for a decoder") from error
            raise Overloaded("the decoders of rarer kinds of pictures are busy", self._waiting_s) from error
        loop = asyncio.get_running_loop()
        try:
            if before is not None:
                await before()
            call = self._isolated.submit(function, *args)
        except BaseException:
            self._turns.release()
            raise
        # Not when this task ends: if it is cancelled, the thread is at work still.
        call.add_done_callback(lambda _: loop.call_soon_threadsafe(self._turns.release))
        return await asyncio.wrap_future(call)
