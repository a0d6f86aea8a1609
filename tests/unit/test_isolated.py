"""Decoders in processes of their own: what they return and raise, their limits, and what a crash costs."""

import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from deployments.errors import DeadlineExceeded, InvalidImage, InvalidRequest, Overloaded, TooLarge
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import isolated, pillow_reader, reader, tiff
from deployments.pictures.isolated import Helpers, IsolatedReader, on_content
from deployments.pictures.raster import Picture, Raster
from harness.images import encoded, picture
from harness.serve import wait_until
from tests.in_helper import (
    answer_when_told,
    crash,
    echo,
    fail,
    hold,
    modules,
    most_memory,
    process_id,
    strange,
    wait,
)

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def helpers() -> Iterator[Helpers]:
    """One process at a time, which each crash replaces."""
    started = Helpers(count=1, timeout_s=20)
    yield started
    started.close()


# ---- results


def test_a_raster_comes_back_whole(helpers: Helpers) -> None:
    samples = np.arange(6000, dtype=np.uint16).reshape(40, 50, 3)
    raster = Raster(samples, samples[:, :, 0] > 9, (1.5, 9.0), True, "a test")

    [answer] = helpers.call("a test", echo, raster)

    np.testing.assert_array_equal(answer.samples, samples)
    np.testing.assert_array_equal(answer.valid, raster.valid)
    assert (answer.window, answer.inverted, answer.description) == ((1.5, 9.0), True, "a test")
    # What comes after may write into it, as into an array of its own.
    answer.samples[0, 0, 0] = 1


def test_a_large_array_comes_back_without_deadlock(helpers: Helpers) -> None:
    large = np.arange(30 * MEBIBYTE, dtype=np.uint8).reshape(-1, 1024)

    [answer] = helpers.call("a test", echo, large)

    np.testing.assert_array_equal(answer, large)


def test_a_reader_reads_in_another_process_as_in_this_one() -> None:
    file = encoded(picture(40, 30))
    isolated = IsolatedReader(pillow_reader, "a PNG file")

    assert isolated.matches(file)
    assert isolated.facts(io.BytesIO(file), PictureOptions(), 1200) == (40, 30, False)
    np.testing.assert_array_equal(
        isolated.picture(io.BytesIO(file), PictureOptions(), 1200).pixels,
        pillow_reader.read(io.BytesIO(file), PictureOptions()).samples,
    )
    for step in (isolated.facts, isolated.picture):
        with pytest.raises(TooLarge, match="image: has 40×30 = 1200 pixels, more than the 1199 accepted"):
            step(io.BytesIO(file), PictureOptions(), 1199)
    with pytest.raises(InvalidRequest, match="page: is 4"):
        isolated.picture(io.BytesIO(file), PictureOptions(page=4), 1200)
    with pytest.raises(InvalidImage, match="damaged or truncated"):
        isolated.picture(io.BytesIO(file[:300]), PictureOptions(), 1200)


def test_a_request_sends_its_file_once_to_be_measured_and_once_to_be_decoded() -> None:
    class Counting(Helpers):
        sent: ClassVar[list[int]] = []

        def call(
            self, kind: str, function: Callable[..., Any], *args: Any, timeout_s: float | None = None, **_: Any
        ) -> Any:
            self.sent.extend(arg.raw().nbytes for arg in args if isinstance(arg, pickle.PickleBuffer))
            answer = super().call(kind, function, *args, timeout_s=timeout_s)
            # No more than the pixels as they are shown comes back, whatever the samples are.
            assert not isinstance(answer, Picture) or answer.pixels.dtype == np.uint8
            return answer

    deep = np.arange(1200, dtype=np.float64).reshape(30, 40)
    file = io.BytesIO()
    tifffile.imwrite(file, deep)
    helpers = Counting(count=1, timeout_s=20)
    isolated = IsolatedReader(tiff, "a TIFF file", helpers)

    assert isolated.facts(file, PictureOptions(), 1200) == (40, 30, True)
    assert isolated.picture(file, PictureOptions(window=(0, 1199)), 1200).pixels[29, 39].tolist() == [255] * 3
    assert helpers.sent == [len(file.getvalue())] * 2
    helpers.close()


def test_a_helper_is_used_again(helpers: Helpers) -> None:
    assert helpers.call("a test", process_id) == helpers.call("a test", process_id) != os.getpid()


def test_a_helper_imports_neither_ray_nor_torch(helpers: Helpers) -> None:
    loaded = helpers.call("a test", modules)

    assert not {"ray", "torch", "starlette", "fastapi", "pydantic"} & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize(
    "error", [InvalidImage("image: is odd"), InvalidRequest("page: is odd"), TooLarge("image: big")]
)
def test_an_error_of_the_service_comes_back_as_it_is(helpers: Helpers, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        helpers.call("a test", fail, error)


@pytest.mark.parametrize("error", [ZeroDivisionError("by 0"), KeyError("tag"), None])
def test_any_other_error_is_about_the_file(helpers: Helpers, error: Exception | None) -> None:
    with pytest.raises(InvalidImage, match="image: is damaged or truncated: "):
        helpers.call("a test", strange) if error is None else helpers.call("a test", fail, error)


def test_only_everyday_pictures_are_decoded_in_this_process() -> None:
    here = {kind for kind, one in reader.READERS.items() if not isinstance(one, IsolatedReader)}

    assert here == {"png16", "pillow"}
    assert reader.inspect(io.BytesIO(b"P5 3 2 4095\n" + bytes(12)), PictureOptions(), 6).kind == "netpbm"


# ---- crashes and limits


@pytest.mark.parametrize("how", ["segfault", "null pointer", "abort", "exit"])
def test_a_crash_costs_one_call_and_nothing_else(helpers: Helpers, how: str) -> None:
    before = helpers.call("a test", process_id)

    with pytest.raises(InvalidImage, match="image: is a FOO file on which the decoder crashed"):
        helpers.call("a FOO file", crash, how)

    assert helpers.call("a test", process_id) != before


def test_a_helper_that_was_killed_while_idle_is_replaced(helpers: Helpers) -> None:
    before = helpers.call("a test", process_id)
    os.kill(before, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(before)], timeout=5) if psutil.pid_exists(before) else None

    assert helpers.call("a test", process_id) != before


def test_a_crash_does_not_touch_what_runs_beside_it(tmp_path: Path) -> None:
    helpers = Helpers(count=2, timeout_s=20)
    answers: list[Any] = []
    beside = threading.Thread(target=lambda: answers.append(helpers.call("a test", answer_when_told, tmp_path)))
    beside.start()
    wait_until((tmp_path / "begun").exists, 20, "at work", 0.01)
    with pytest.raises(InvalidImage):
        helpers.call("a test", crash, "abort")
    assert answers == []
    (tmp_path / "go").touch()
    beside.join(20)

    assert answers == ["done"]
    helpers.close()


def test_what_takes_too_long_is_ended(helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    process = helpers.call("a test", process_id)
    started = time.perf_counter()

    with monkeypatch.context() as patch:
        patch.setattr(helpers, "_timeout_s", 0.3)
        with pytest.raises(InvalidImage, match=r"image: is a FOO file that takes more than 0\.3 s to decode"):
            helpers.call("a FOO file", wait, 60)

    assert time.perf_counter() - started < 10
    assert not psutil.pid_exists(process)
    assert helpers.call("a test", process_id) != process


def test_a_callers_own_deadline_is_kept_and_is_no_fault_of_the_file(helpers: Helpers) -> None:
    helpers.call("a test", process_id)
    started = time.perf_counter()

    with pytest.raises(DeadlineExceeded, match="passed while a FOO file was decoded"):
        helpers.call("a FOO file", wait, 60, timeout_s=0.3)
    with pytest.raises(DeadlineExceeded, match="while waiting for a decoder of a FOO file"):
        Helpers(count=0, timeout_s=20).call("a FOO file", process_id, timeout_s=0.1)

    assert time.perf_counter() - started < 10


def test_a_helper_that_hangs_while_it_reads_its_input_is_ended_in_time(helpers: Helpers) -> None:
    process = helpers.call("a test", process_id)
    os.kill(process, signal.SIGSTOP)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            # More than the socket holds.
            helpers.call("a FOO file", echo, bytes(20 * MEBIBYTE), timeout_s=0.5)
        except DeadlineExceeded as error:
            caught.append(error)

    # A thread of its own, so that a call that never ends fails the test only.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)

    assert len(caught) == 1
    assert not psutil.pid_exists(process)
    assert helpers.call("a test", process_id) != process


def test_what_needs_too_much_memory_is_refused_and_does_no_harm() -> None:
    helpers = Helpers(count=1, timeout_s=20, memory_bytes=600 * MEBIBYTE)
    process = helpers.call("a test", process_id)

    assert helpers.call("a test", hold, 100 * MEBIBYTE) > 0
    with pytest.raises(TooLarge, match="image: needs more memory to decode than there is"):
        helpers.call("a test", hold, 2000 * MEBIBYTE)

    assert helpers.call("a test", process_id) == process
    helpers.close()


@pytest.mark.parametrize(("limit", "share"), [(1200 * MEBIBYTE, 600 * MEBIBYTE), (64 * 2**30, 3 * 2**30)])
def test_all_helpers_together_stay_below_a_containers_memory_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int, share: int
) -> None:
    monkeypatch.setattr(isolated, "memory_limit", lambda: limit)
    helpers = Helpers(count=2, timeout_s=20)

    assert helpers.call("a test", most_memory) == share
    helpers.close()


def test_a_call_that_finds_no_free_helper_is_told_to_come_again() -> None:
    with pytest.raises(Overloaded, match="busy") as caught:
        Helpers(count=0, timeout_s=0.1).call("a test", process_id)

    assert caught.value.retry_after_s == 1


# ---- what stays open


opened: list[str] = []


def open_in_helper(name: str) -> list[str]:
    opened.append(name)
    return opened


def close_in_helper(name: str) -> None:
    opened.append(f"-{name}")


def open_slowly(name: str) -> list[str]:
    time.sleep(1)
    return open_in_helper(name)


@pytest.fixture
def two_helpers() -> Iterator[Helpers]:
    started = Helpers(count=2, timeout_s=20)
    yield started
    started.close()


def test_each_of_two_keys_has_a_helper_of_its_own(two_helpers: Helpers) -> None:
    for turn in range(1, 4):
        for key, name in ((1, "a"), (2, "b")):
            assert two_helpers.call("a test", open_in_helper, name, key=key) == [name] * turn


def test_a_busy_helper_is_not_waited_for_if_another_is_free(two_helpers: Helpers) -> None:
    first = two_helpers.call("a test", process_id, key=1)
    two_helpers.call("a test", process_id, key=2)
    busy = threading.Thread(target=two_helpers.call, args=("a test", open_slowly, "slow"), kwargs={"key": 1})
    busy.start()
    time.sleep(0.2)
    started = time.perf_counter()
    assert two_helpers.call("a test", process_id, key=1) != first
    assert time.perf_counter() - started < 0.7
    busy.join()


def test_a_third_key_takes_the_place_of_the_one_whose_last_use_is_longest_ago(two_helpers: Helpers) -> None:
    processes = {key: two_helpers.call("a test", process_id, key=key) for key in (1, 2)}
    two_helpers.call("a test", process_id, key=1)
    assert two_helpers.call("a test", process_id, key=3) == processes[2]
    assert two_helpers.call("a test", process_id, key=1) == processes[1]


def test_what_has_a_key_is_closed_where_it_is_open_and_nowhere_else(two_helpers: Helpers) -> None:
    for key, name in ((1, "a"), (2, "b")):
        two_helpers.call("a test", open_in_helper, name, key=key)
    two_helpers.release(1, close_in_helper, "a")
    two_helpers.release(1, close_in_helper, "twice")
    two_helpers.release(7, close_in_helper, "unknown")
    assert two_helpers.call("a test", open_in_helper, "b", key=2) == ["b", "b"]
    assert two_helpers.call("a test", open_in_helper, "c", key=3) == ["a", "-a", "c"]


def test_a_busy_helper_closes_after_its_call_and_nobody_waits_for_that(two_helpers: Helpers) -> None:
    two_helpers.call("a test", open_in_helper, "a", key=1)
    busy = threading.Thread(target=two_helpers.call, args=("a test", open_slowly, "slow"))
    busy.start()
    time.sleep(0.2)
    started = time.perf_counter()
    two_helpers.release(1, close_in_helper, "a")
    assert time.perf_counter() - started < 0.5
    busy.join()
    assert two_helpers.call("a test", open_in_helper, "b") == ["a", "slow", "-a", "b"]


def test_a_helper_that_cannot_close_is_ended(two_helpers: Helpers) -> None:
    process = two_helpers.call("a test", process_id, key=1)
    two_helpers.release(1, crash, "abort")
    assert not psutil.pid_exists(process)
    assert two_helpers.call("a test", process_id, key=1) != process


def test_helpers_that_were_closed_start_anew(helpers: Helpers) -> None:
    before = helpers.call("a test", process_id, key=1)
    helpers.close()
    assert not psutil.pid_exists(before)
    assert helpers.call("a test", process_id, key=1, timeout_s=10) not in (before, os.getpid())


ORPHAN = """
import sys
from deployments.pictures.isolated import Helpers
from tests.in_helper import process_id
print(Helpers(count=1).call("a test", process_id), flush=True)
"""


def test_a_helper_ends_with_its_process() -> None:
    run = subprocess.run(
        [sys.executable, "-c", ORPHAN],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    helper = int(run.stdout)
    wait_until(lambda: not psutil.pid_exists(helper), 5, "ended", 0.01)


def test_a_reader_gets_the_content_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def head(module: Any, file: BinaryIO, options: PictureOptions, max_pixels: int) -> tuple[Any, ...]:
        return module, file.read(3), options.page_number(), max_pixels, Image.MAX_IMAGE_PIXELS

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)

    answer = on_content(head, pillow_reader.__name__, memoryview(b"abcdef"), PictureOptions(page=2), 9)

    assert answer == (pillow_reader, b"abc", 2, 9, 9)
    # Nothing is left of one file's limit for others.
    assert Image.MAX_IMAGE_PIXELS == 12345
