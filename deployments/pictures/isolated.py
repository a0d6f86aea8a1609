"""Runs decoders in helper processes, where a crash of their native code costs one request and nothing else.

That holds for crashes, endless loops and memory; a helper has the same rights as its service.
"""

import io
import math
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any, BinaryIO, TypeVar, cast

from deployments.errors import DeadlineExceeded, InvalidImage, Overloaded, TooLarge
from deployments.machine import memory_limit
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.helper import receive, send
from deployments.pictures.pillow_guard import pillow_guard
from deployments.pictures.raster import Picture
from deployments.pictures.steps import ReaderModule, facts_of, picture_of

T = TypeVar("T")

NUM_HELPERS = 2

TIMEOUT_S = 60.0
"""How long a decoder may take, and how long a call waits for a helper that is free."""

RELEASE_TIMEOUT_S = 5.0
"""How long a helper may take to close what it has open."""

MEMORY_BYTES = 3 * 2**30
"""What a helper may hold at most: pictures of 63 megapixels took 1.6 GB (camera raw 1.1, AVIF 1.3, DICOM 1.6)."""

ROOT = str(Path(__file__).parents[2])

# Nothing of the caller's main module is imported, as multiprocessing would: of a Ray worker, that is Ray.
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from deployments.pictures.helper import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)


class Helper:
    """A process that runs functions, one at a time.

    It is started by its own command line, and not forked: this process has threads, and may hold a GPU. It imports
    numpy, Pillow and what a decoder needs, but neither Ray nor torch. It starts in a third of a second and holds 32 MB,
    and 110 MB once it has used all libraries; a call takes 0.1 ms and the time to copy what is sent.

    Args:
        memory_bytes: the limit of the memory that it may hold.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        ours, theirs = socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, ROOT, str(theirs.fileno()), str(memory_bytes)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> tuple[bool, Any]:
        """Runs a function there; returns whether it raised, and what it raised or returned.

        Raises:
            EOFError: the process died.
            TimeoutError: the call took too long; the process is ended.
        """
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.process.kill()

        # A process that hangs while it reads or writes holds up what is sent or received, which have no time-out of
        # their own; its end ends them.
        timer = threading.Timer(timeout_s, expire)
        timer.daemon = True
        timer.start()
        try:
            send(self._connection, (function, args, timeout_s))
            outcome: tuple[bool, Any] = receive(self._connection)
        # A process that ends in the middle of its answer is told by a plain OSError.
        except (EOFError, OSError) as error:
            if expired.is_set():
                raise TimeoutError from error
            raise EOFError from error
        finally:
            timer.cancel()
            timer.join()
        if expired.is_set():
            # The answer came in the very moment in which the process was ended.
            raise TimeoutError
        return outcome

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def close(self) -> None:
        """Ends the process at once."""
        self._connection.close()
        self.process.kill()
        self.process.wait()


class _Place:
    """Where a helper may run.

    Attributes:
        helper: None until one is needed, and after a crash.
        key: of the last call that had one: what the helper may have open.
        release: what is still to be run there before the place is free.
    """

    def __init__(self) -> None:
        self.helper: Helper | None = None
        self.key: int | None = None
        self.release: Callable[[], None] | None = None

    def end(self) -> None:
        """Ends the process, and with it all that it has open."""
        if self.helper is not None:
            self.helper.close()
        self.helper = self.key = None


class Helpers:
    """Some helpers, which are started when they are needed, used again, and replaced after a crash.

    Args:
        count: how many functions run at a time.
        timeout_s: how long one may take.
        memory_bytes: what one may hold; None is MEMORY_BYTES, or less where all of them together would exceed the
            memory limit of the container or the machine.
    """

    def __init__(self, count: int = NUM_HELPERS, timeout_s: float = TIMEOUT_S, memory_bytes: int | None = None) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._places = [_Place() for _ in range(count)]
        # The last that was used comes last.
        self._free = list(self._places)
        self._turn = threading.Condition()

    def call(
        self, kind: str, function: Callable[..., T], *args: Any, timeout_s: float | None = None, key: int | None = None
    ) -> T:
        """Runs a function in a helper; waits until one is free. To be called from a thread.

        Args:
            kind: what it decodes, with its article, for messages.
            function: of a module, so that the helper can import it.
            args: what can be pickled.
            timeout_s: the time that the caller has for waiting and running together; None is no limit of its own.
            key: names what the function leaves open for the next call with this key: of the helpers that are free, the
                one that ran the last is taken. A helper has one such thing open at a time.

        Raises:
            InvalidImage: the decoder crashed, or took too long.
            Overloaded: no helper became free in time.
            DeadlineExceeded: the caller's own time ended before the decoder had.
            Exception: what the function raised.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        place = self._taken(kind, key, until)
        left_s = _at_most(self._timeout_s, until)
        try:
            is_error, value = self._running(place).call(function, args, left_s)
        except BaseException as error:
            place.end()
            if isinstance(error, EOFError):
                raise InvalidImage(f"image: is {kind} on which the decoder crashed") from error
            if isinstance(error, TimeoutError) and left_s < self._timeout_s:
                raise DeadlineExceeded(f"the request's deadline passed while {kind} was decoded") from error
            if isinstance(error, TimeoutError):
                raise InvalidImage(f"image: is {kind} that takes more than {self._timeout_s:g} s to decode") from error
            raise
        finally:
            self._put_back(place)
        if isinstance(value, MemoryError):
            raise TooLarge("image: needs more memory to decode than there is") from value
        if is_error:
            raise value
        result: T = value
        return result

    def release(self, key: int, function: Callable[..., None], *args: Any) -> None:
        """Runs a function, which closes what has this key, in each helper that may have it open.

        It waits for no helper that is at work: such a one runs it right after its call.

        Args:
            key: of earlier calls; there are no more of them.
            function: of a module.
            args: what can be pickled.
        """
        with self._turn:
            holding = [place for place in self._places if place.key == key]
            for place in holding:
                place.release = partial(_released, place, function, args)
            free = [place for place in holding if place in self._free]
            self._free = [place for place in self._free if place not in free]
        for place in free:
            self._put_back(place)

    def close(self) -> None:
        """Ends all processes that are not at work. A later call starts new ones."""
        with self._turn:
            for place in self._free:
                place.end()

    def _taken(self, kind: str, key: int | None, until: float) -> _Place:
        """Waits for a place that is free, and takes the best of these."""
        with self._turn:
            if not self._turn.wait_for(lambda: self._free, _at_most(self._timeout_s, until)):
                if time.monotonic() >= until:
                    raise DeadlineExceeded(f"the request's deadline passed while waiting for a decoder of {kind}")
                raise Overloaded("the decoders of rarer kinds of pictures are busy", self._timeout_s)
            place = self._free[-1] if key is None else _best(self._free, key)
            self._free.remove(place)
            if key is not None:
                place.key = key
            return place

    def _put_back(self, place: _Place) -> None:
        while True:
            with self._turn:
                release, place.release = place.release, None
                if release is None:
                    self._free.append(place)
                    self._turn.notify()
                    return
            release()

    def _running(self, place: _Place) -> Helper:
        if place.helper is not None and not place.helper.is_alive():
            place.helper.close()
            place.helper = None
        if place.helper is None:
            # Beyond the limit of a container the kernel would end processes, and not only this one.
            share = self._memory_bytes or min(MEMORY_BYTES, memory_limit() // len(self._places))
            place.helper = Helper(share)
        return place.helper


def _best(free: list[_Place], key: int) -> _Place:
    """The place whose helper has it open; else one with nothing open; else the one whose last use is longest ago."""
    ranked = [place for place in free if place.key == key] or [place for place in free if place.key is None]
    return ranked[-1] if ranked else free[0]


def _released(place: _Place, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    place.key = None
    if place.helper is None:
        return
    try:
        place.helper.call(function, args, RELEASE_TIMEOUT_S)
    except Exception:
        # Whatever is wrong with it: its end closes all that it has open.
        place.end()


def _at_most(seconds: float, until: float) -> float:
    """Returns the seconds until a point in time, from 0 to so many."""
    return min(seconds, max(0.0, until - time.monotonic()))


HELPERS = Helpers()
"""Those of this process. They end with it, since their connections do."""


class IsolatedReader:
    """A reader whose work is done in a helper: the file goes there whole, and 3 bytes a pixel come back.

    Samples of more than 8 bits are also windowed there, so that this process never holds them.

    Args:
        reader: a module that reads pictures, such as heif.py.
        kind: what it reads, with its article.
        helpers: where it is read; None is those of this process.
    """

    def __init__(self, reader: ReaderModule, kind: str, helpers: Helpers | None = None) -> None:
        self._reader = reader
        self._kind = kind
        self._helpers = HELPERS if helpers is None else helpers

    def matches(self, head: bytes) -> bool:
        """Whether the file is of this kind; decided in this process, since no decoder sees the bytes."""
        return self._reader.matches(head)

    def facts(
        self, file: BinaryIO, options: PictureOptions, max_pixels: int, timeout_s: float | None = None
    ) -> tuple[int, int, bool]:
        """Runs `steps.facts_of`; see there, and `Helpers.call` for `timeout_s` and further errors."""
        return self.run(facts_of, file, options, max_pixels, timeout_s)

    def picture(
        self, file: BinaryIO, options: PictureOptions, max_pixels: int, timeout_s: float | None = None
    ) -> Picture:
        """Runs `steps.picture_of`; see there, and `Helpers.call` for `timeout_s` and further errors."""
        return self.run(picture_of, file, options, max_pixels, timeout_s)

    def run(
        self,
        step: Callable[[ReaderModule, BinaryIO, PictureOptions, int], T],
        file: BinaryIO,
        options: PictureOptions,
        max_pixels: int,
        timeout_s: float | None = None,
    ) -> T:
        """Runs a step, a module's function, with the reader there; see `Helpers.call` for `timeout_s` and errors."""
        file.seek(0)
        content = pickle.PickleBuffer(file.read())
        arguments = (step, self._reader.__name__, content, options, max_pixels)
        answer: T = self._helpers.call(self._kind, on_content, *arguments, timeout_s=timeout_s)
        return answer


def on_content(
    step: Callable[[ReaderModule, BinaryIO, PictureOptions, int], T],
    reader: str,
    content: Any,
    options: PictureOptions,
    max_pixels: int,
) -> T:
    """Does a step with a file's bytes; this is what runs in the helper.

    Args:
        step: of steps.py.
        reader: the name of the reader's module.
        content: the file's bytes.
        options: how it is read.
        max_pixels: the most pixels that are accepted, also by Pillow's own guard against huge images.
    """
    module = cast(ReaderModule, import_module(reader))
    with pillow_guard(max_pixels):
        return step(module, io.BytesIO(content), options, max_pixels)
