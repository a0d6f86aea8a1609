"""Everyday pictures do not wait behind those that helper processes decode."""

import asyncio
import io
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tifffile

from deployments.errors import DeadlineExceeded, Overloaded
from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.deadline import Deadline
from deployments.parsing.decoding_threads import DECODING_THREADS, DecodingThreads
from deployments.parsing.images import IdentifiedImage, is_isolated
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.segmenter import Segmenter
from deployments.parsing.stage_times import StageTimes
from deployments.pictures import reader, tiff
from deployments.pictures.isolated import NUM_HELPERS, Helpers, IsolatedReader
from deployments.settings import RequestParserConfig, ServiceSettings
from harness.images import encoded, picture


class SlowHelpers(Helpers):
    """Start no process; each call waits until it is let go, and fails."""

    def __init__(self) -> None:
        super().__init__(count=0)
        self.go = threading.Event()
        self.calls = 0

    def call(
        self, kind: str, function: Callable[..., Any], *args: Any, timeout_s: float | None = None, **_: Any
    ) -> Any:
        self.calls += 1
        self.go.wait(30)
        raise Overloaded("a test", 1)


def tiff_file() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((3, 4), np.uint16))
    return buffer.getvalue()


async def test_an_everyday_picture_does_not_wait_behind_slow_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = SlowHelpers()
    monkeypatch.setitem(reader.READERS, "tiff", IsolatedReader(tiff, "a TIFF file", helpers))
    segmenter = Segmenter(ServiceSettings(), cast(Any, None), ByteBudget(2**30, "too many images"))
    slow = [asyncio.create_task(segmenter.identify(tiff_file())) for _ in range(2 * DECODING_THREADS)]
    try:
        while helpers.calls < NUM_HELPERS:
            await asyncio.sleep(0.01)

        identified = await asyncio.wait_for(segmenter.identify(encoded(picture(40, 30))), 10)

        assert identified.decoded_bytes == 3 * 40 * 30
        # No more calls than there are helpers: the others wait outside of the threads.
        assert helpers.calls == NUM_HELPERS
    finally:
        helpers.go.set()
        ended = await asyncio.gather(*slow, return_exceptions=True)
    assert all(isinstance(one, Overloaded) for one in ended)


async def test_what_waits_for_a_helper_holds_no_share_of_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = SlowHelpers()
    monkeypatch.setitem(reader.READERS, "tiff", IsolatedReader(tiff, "a TIFF file", helpers))
    # Room for those that are at work, and for one more.
    budget = ByteBudget(3 * 12 * (NUM_HELPERS + 1), "too many images")
    calls = cast(ModelCalls, SimpleNamespace(config=RequestParserConfig(max_wait_s=5)))
    segmenter = Segmenter(ServiceSettings(), calls, budget)
    waiting = IdentifiedImage("1" * 64, tiff_file(), 3 * 12, kind="tiff")
    everyday = IdentifiedImage("2" * 64, encoded(picture(4, 3)), 3 * 12, kind="pillow")

    async def decode(image: IdentifiedImage) -> StageTimes:
        times = StageTimes()
        async with AsyncExitStack() as held:
            await segmenter.decode(image, Deadline(20), held, times)
        return times

    slow = [asyncio.create_task(decode(waiting)) for _ in range(2 * DECODING_THREADS)]
    try:
        while helpers.calls < NUM_HELPERS:
            await asyncio.sleep(0.01)

        times = await asyncio.wait_for(decode(everyday), 4)

        assert times.seconds()["queue"] < 1
        assert helpers.calls == NUM_HELPERS
    finally:
        helpers.go.set()
        ended = await asyncio.gather(*slow, return_exceptions=True)
    assert all(isinstance(one, Overloaded) for one in ended)
    # All of it has been given back.
    assert budget.expected_wait_s(3 * 12 * (NUM_HELPERS + 1)) == 0


async def test_a_turn_in_which_nothing_runs_is_given_back() -> None:
    async def refuse() -> None:
        raise Overloaded("overloaded: a test")

    async def never() -> None:
        await asyncio.sleep(60)

    threads = DecodingThreads(waiting_s=0.2)
    for _ in range(NUM_HELPERS):
        with pytest.raises(Overloaded, match="a test"):
            await threads.run_isolated(None, pytest.fail, "it runs", before=refuse)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(threads.run_isolated(None, pytest.fail, "it runs", before=never), 0.05)

    assert await threads.run_isolated(None, int) == 0


async def test_waiting_for_a_turn_ends_with_the_deadline_or_when_it_takes_too_long() -> None:
    threads, go = DecodingThreads(waiting_s=0.2), threading.Event()
    busy = [asyncio.create_task(threads.run_isolated(None, go.wait, 30)) for _ in range(NUM_HELPERS)]
    await asyncio.sleep(0)

    with pytest.raises(DeadlineExceeded, match="waited for a decoder"):
        await threads.run_isolated(Deadline(0.05), bool)
    with pytest.raises(Overloaded, match="busy"):
        await threads.run_isolated(Deadline(30), bool)

    go.set()
    assert await asyncio.gather(*busy) == [True] * NUM_HELPERS
    assert await threads.run_isolated(Deadline(30), bool) is False


@pytest.mark.parametrize("as_file", [False, True])
def test_which_files_go_to_helpers(as_file: bool) -> None:
    for content, expected in ((tiff_file(), True), (encoded(picture(40, 30)), False), (b"%PDF-1.7", False)):
        assert is_isolated(io.BytesIO(content) if as_file else content) == expected
    assert not is_isolated(np.zeros((3, 4), np.uint8))


async def test_a_turn_ends_with_the_thread_not_with_the_request() -> None:
    threads, go_on = DecodingThreads(waiting_s=0.05), threading.Event()
    calls = [asyncio.create_task(threads.run_isolated(None, go_on.wait)) for _ in range(NUM_HELPERS)]
    await asyncio.sleep(0.05)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    with pytest.raises(Overloaded):
        await threads.run_isolated(None, int)
    go_on.set()
    await asyncio.sleep(0.1)
    assert await threads.run_isolated(None, int) == 0
