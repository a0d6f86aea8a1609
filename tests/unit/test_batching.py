"""Admission: who comes while a batch is at work enters with the others when it is done."""

import asyncio

import pytest

from deployments.model import batching
from deployments.model.batching import Admission
from tests.loops import Clock, settled


class Queue:
    """A batch queue with Serve's behaviour that matters here: whoever is inside when nothing else moves is a batch."""

    def __init__(self, size: int) -> None:
        self.admission = Admission(size)
        self.batches: list[list[int]] = []
        self.done = asyncio.Event()
        self._inside: list[int] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def request(self, number: int) -> int:
        async with self.admission:
            self._inside.append(number)
            # Until no further request comes in by itself.
            for _ in range(5):
                await asyncio.sleep(0)
            if self._inside:
                self.batches.append(self._inside)
                self._inside = []
                self._tasks.append(asyncio.create_task(self._run()))
            await self.done.wait()
            return number

    async def _run(self) -> None:
        with self.admission.running():
            await self.done.wait()


async def finish(queue: Queue) -> None:
    """Ends the batch at work, and lets the next one form."""
    queue.done.set()
    await asyncio.sleep(0)
    queue.done.clear()
    await settled()


async def test_requests_that_come_one_by_one_while_a_batch_is_at_work_are_one_batch() -> None:
    queue = Queue(8)
    requests = []
    for number in range(5):
        requests.append(asyncio.create_task(queue.request(number)))
        # Long enough for a batch of its own.
        await settled()
    await finish(queue)
    assert queue.batches == [[0], [1, 2, 3, 4]]
    await finish(queue)
    assert await asyncio.gather(*requests) == list(range(5))


async def test_a_round_is_no_larger_than_a_batch_and_the_rest_has_the_next_turn() -> None:
    queue = Queue(3)
    requests = [asyncio.create_task(queue.request(number)) for number in range(8)]
    for _ in range(3):
        await settled()
        await finish(queue)
    assert queue.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert await asyncio.gather(*requests) == list(range(8))


async def test_a_request_that_is_cancelled_outside_never_enters_a_batch() -> None:
    queue = Queue(8)
    requests = [asyncio.create_task(queue.request(0))]
    await settled()
    requests += [asyncio.create_task(queue.request(number)) for number in (1, 2, 3)]
    await settled()
    requests[2].cancel()
    await finish(queue)
    assert queue.batches == [[0], [1, 3]]
    await finish(queue)


async def test_a_request_that_is_cancelled_in_the_moment_of_its_turn_leaves_the_round_open() -> None:
    admission = Admission(1)
    await admission.__aenter__()
    with admission.running():
        entered = [asyncio.create_task(admission.__aenter__()) for _ in range(2)]
        await settled()
    await admission.__aexit__()
    # Admitted, but it does not know yet.
    entered[0].cancel()
    await settled()
    assert entered[0].cancelled()
    assert entered[1].done()


async def test_a_new_size_counts_for_the_next_round() -> None:
    queue = Queue(2)
    requests = [asyncio.create_task(queue.request(number)) for number in range(6)]
    await settled()
    queue.admission.size = 4
    await finish(queue)
    assert queue.batches == [[0, 1], [2, 3, 4, 5]]
    await finish(queue)
    await asyncio.gather(*requests)


async def test_who_comes_now_is_told_how_long_the_queue_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = Clock(), asyncio.Event()
    monkeypatch.setattr(batching, "time", clock)
    waiting: list[int] = []
    admission = Admission(2, waiting.append)
    assert admission.expected_wait_s() == 0

    async def request() -> None:
        async with admission:
            with admission.running():
                await done.wait()

    # The first run tells.
    first = asyncio.create_task(request())
    await settled()
    clock.now += 0.1
    done.set()
    await first
    done.clear()
    assert admission.expected_wait_s() == 0
    # One is at work; two rounds are full, and a third is begun.
    requests = [asyncio.create_task(request()) for _ in range(6)]
    await settled()
    assert waiting[-1] == 5
    assert admission.expected_wait_s() == pytest.approx(0.3)
    done.set()
    await asyncio.gather(*requests)
    assert waiting[-1] == 0
    assert admission.expected_wait_s() == 0


async def test_a_batch_that_nobody_waits_for_any_more_is_still_at_work() -> None:
    admission, done = Admission(1), asyncio.Event()

    async def batch() -> None:
        with admission.running():
            await done.wait()

    async def request() -> None:
        async with admission:
            await asyncio.create_task(batch())

    await admission.__aenter__()
    at_work = asyncio.create_task(batch())
    await settled()
    await asyncio.sleep(0.1)
    # Its only caller goes away.
    await admission.__aexit__()
    next_one = asyncio.create_task(request())
    await settled()
    assert admission.waiting == 1
    done.set()
    await at_work
    await next_one
    # What it took is not what its caller waited for.
    done.clear()
    busy = asyncio.create_task(request())
    await settled()
    assert admission.expected_wait_s() > 0.05
    done.set()
    await busy
