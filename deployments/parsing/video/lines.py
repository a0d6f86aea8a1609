"""The answer to a request that follows objects: NDJSON, server-sent events, or a zip of label images."""

import asyncio
import logging
import re
import zipfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import IO, Any, Protocol, cast

import orjson

from deployments.errors import ServiceError
from deployments.messages.track import FrameMasks

logger = logging.getLogger("ray.serve")

PAUSE_S = 15.0
"""After so long without a line, an event stream gets a comment, so that nothing on its way takes it for dead."""


class Lines(Protocol):
    """How the parts of an answer are written.

    Attributes:
        media_type: the Content-Type.
        comment: what is sent in a pause; b"" sends nothing.
    """

    media_type: str
    comment: bytes

    def head(self, facts: dict[str, Any]) -> bytes:
        """Writes what is known before the first frame."""

    def frame(self, index: int, text: bytes) -> bytes:
        """Writes a frame, as ResponseEncoder wrote it."""

    def end(self, result: dict[str, Any]) -> bytes:
        """Writes `{"done": …}` or `{"error": …}`: without it, an answer was cut off."""


class JsonLines:
    """A JSON object a line: NDJSON."""

    media_type = "application/x-ndjson"
    comment = b""

    def head(self, facts: dict[str, Any]) -> bytes:
        """See Lines."""
        return orjson.dumps(facts) + b"\n"

    def frame(self, index: int, text: bytes) -> bytes:
        """See Lines."""
        return text + b"\n"

    end = head


class EventStream:
    """Server-sent events: the `data` of each is the JSON object that NDJSON has in a line."""

    media_type = "text/event-stream"
    comment = b": nothing new yet\n\n"

    def head(self, facts: dict[str, Any]) -> bytes:
        """See Lines."""
        return b"data: " + orjson.dumps(facts) + b"\n\n"

    def frame(self, index: int, text: bytes) -> bytes:
        """See Lines."""
        return b"data: " + text + b"\n\n"

    end = head


class LabelZip:
    """A zip: `video.json`, a PNG for each frame, and at the end `done.json` or `error.json`.

    A frame that comes again, with other objects in the other direction, is `00007-2.png` beside `00007.png`.
    """

    media_type = "application/zip"
    comment = b""

    def __init__(self) -> None:
        self._buffer = _Unseekable()
        self._indices: set[int] = set()
        # PNGs are compressed already.
        self._zip = zipfile.ZipFile(cast(IO[bytes], self._buffer), "w", zipfile.ZIP_STORED)

    def head(self, facts: dict[str, Any]) -> bytes:
        """See Lines."""
        return self._entry("video.json", orjson.dumps(facts))

    def frame(self, index: int, text: bytes) -> bytes:
        """See Lines."""
        again = "-2" if index in self._indices else ""
        self._indices.add(index)
        return self._entry(f"{index:05}{again}.png", text)

    def end(self, result: dict[str, Any]) -> bytes:
        """See Lines."""
        name = "done.json" if "done" in result else "error.json"
        written = self._entry(name, orjson.dumps(result))
        self._zip.close()
        return written + self._buffer.taken()

    def _entry(self, name: str, content: bytes) -> bytes:
        self._zip.writestr(name, content)
        return self._buffer.taken()


class _Unseekable:
    """A file that only takes bytes: so `zipfile` writes a zip from its beginning to its end."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, part: bytes) -> int:
        self._parts.append(bytes(part))
        return len(part)

    def flush(self) -> None:
        """Does nothing; `zipfile` asks for it."""

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


async def written(
    masks: AsyncGenerator[FrameMasks, None],
    encode: Callable[[FrameMasks], Awaitable[memoryview]],
    facts: dict[str, Any],
    lines: Lines,
) -> AsyncGenerator[bytes, None]:
    """Yields the answer: what is known of the video, each frame as soon as it is written, and how it ended.

    Args:
        masks: of each frame.
        encode: writes a frame.
        facts: the first line.
        lines: how lines are written.
    """
    yield lines.head(facts)
    frames = 0
    result: dict[str, Any]
    try:
        async with aclosing(_with_pauses(masks, PAUSE_S if lines.comment else None)) as found:
            async for one in found:
                if one is None:
                    yield lines.comment
                    continue
                text = await encode(one)
                yield lines.frame(one.frame_index, bytes(text))
                frames += 1
        result = {"done": True, "frames": frames}
    except ServiceError as error:
        result = {"error": {"msg": error.message, "code": error_code(error)}, "frames": frames}
    # The last resort: the status is sent already, so only the last line can say it.
    except Exception:
        logger.exception("following objects failed")
        result = {"error": {"msg": "internal error; the log has it", "code": "internal_error"}, "frames": frames}
    finally:
        await masks.aclose()
    yield lines.end(result)


async def _with_pauses(
    masks: AsyncGenerator[FrameMasks, None], pause_s: float | None
) -> AsyncGenerator[FrameMasks | None, None]:
    """Yields masks, and None whenever there are none for `pause_s`."""
    while True:
        waiting = asyncio.ensure_future(anext(masks, None))
        try:
            while not (await asyncio.wait({waiting}, timeout=pause_s))[0]:
                yield None
        except BaseException:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            raise
        one = await waiting
        if one is None:
            return
        yield one


def error_code(error: ServiceError) -> str:
    """Returns the stable name of an error, for programs: its own, or that of its class, such as `invalid_video`."""
    return error.code or re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
