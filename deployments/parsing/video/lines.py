"""The answer to a request that follows objects, line by line: as NDJSON or as server-sent events."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import orjson

from deployments.errors import ServiceError
from deployments.messages.track import FrameMasks

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

PAUSE_S = 15.0
"""After so long without a line something without a meaning is sent, so that no proxy takes the connection for dead."""


class Lines(Protocol):
    """How the parts of an answer are written.

    Attributes:
        media_type: the Content-Type.
        comment: what is sent in a pause, and changes nothing for who reads; b"" sends nothing.
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
    """A JSON object a line: NDJSON.

    In a pause a space is sent, which stands before the next line's object: JSON allows that, but NDJSON no empty lines.
    """

    media_type = "application/x-ndjson"
    comment = b" "

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
        texts = _encoded(masks, encode)
        async with aclosing(_with_pauses(texts, PAUSE_S if lines.comment else None)) as found:
            async for one in found:
                if one is None:
                    yield lines.comment
                    continue
                index, text = one
                yield lines.frame(index, text)
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


async def _encoded(
    masks: AsyncGenerator[FrameMasks, None], encode: Callable[[FrameMasks], Awaitable[memoryview]]
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yields each frame's index and its text."""
    async for one in masks:
        yield one.frame_index, bytes(await encode(one))


async def _with_pauses(values: AsyncGenerator[T, None], pause_s: float | None) -> AsyncGenerator[T | None, None]:
    """Yields values, and None whenever there are none for `pause_s`; closes the generator of the values."""
    async with aclosing(values):
        while True:
            waiting = asyncio.ensure_future(anext(values, None))
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
