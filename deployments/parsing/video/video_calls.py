"""Calls VideoReader: uploads files, asks what they hold, and orders frames, which go straight to a model."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.errors import InvalidVideo, VideoNotCached
from deployments.messages.arrays import RgbArray
from deployments.messages.video import GONE, FrameBatch, VideoFacts, affinity
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.retries import forgotten_by_all

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

T = TypeVar("T")

PART_BYTES = 4 * 2**20
"""Bytes of a file that are sent in one call."""

UPLOADS = 3
"""How often a file is sent while it is asked for and not there, since its replica died or had to make room."""


class RequestedVideo:
    """A video of a request.

    Attributes:
        video_id: SHA-256 of the file, as hex.
        source: the file, if the request brought it; None if it named a file that the service keeps.
    """

    def __init__(self, video_id: str, source: BinaryIO | None = None) -> None:
        self.video_id = video_id
        self.source = source


class VideoCalls:
    """Calls VideoReader on behalf of RequestParser. All calls for a video go to the same replica.

    Args:
        reader: the handle of VideoReader.
        calls: provides the retries.
    """

    def __init__(self, reader: "DeploymentHandle[Any]", calls: ModelCalls) -> None:
        self._reader = reader
        self._calls = calls
        self._background: set[asyncio.Task[None]] = set()

    async def facts(self, video: RequestedVideo, deadline: Deadline) -> VideoFacts:
        """Returns what is known of a video; sends its file if VideoReader does not keep it.

        Raises:
            VideoNotCached: the file is not kept, and the request did not bring it.
            InvalidVideo: it cannot be read.
            TooLarge: it is over a limit.
            Unavailable: the readers are overloaded, or the deadline has passed.
        """

        async def ask() -> VideoFacts:
            facts: VideoFacts = await self._call("facts", video, deadline)
            return facts

        return await self._with_file(ask, video, deadline)

    async def frame(self, video: RequestedVideo, index: int, deadline: Deadline) -> RgbArray:
        """Returns one frame, `H×W×3` uint8 RGB.

        Raises:
            VideoNotCached, InvalidVideo, TooLarge, Unavailable: see `facts`.
        """

        async def ask() -> RgbArray:
            batch: FrameBatch = await self._call("read", video, deadline, "clicks", range(index, index + 1))
            if batch.fault is not None:
                raise batch.fault
            if not batch.pixels:
                raise InvalidVideo(f"video: frame {index} is announced in the file, but not there")
            return batch.pixels[0]

        return await self._with_file(ask, video, deadline)

    def frames(self, video_id: str, job: str, frames: range) -> Any:
        """Orders frames: returns a response, which is handed on to a model without being awaited here.

        A response that fails holds no exception but a FrameBatch with a fault, unless the replica dies.
        """
        return self._handle(video_id).read.remote(video_id, job, frames)

    async def forget(self, video_id: str) -> bool:
        """Deletes a video from every replica; returns whether any had it.

        Raises:
            Unavailable: a replica did not answer in time.
        """
        return await forgotten_by_all(self._reader, video_id, "video", "VideoReader", _is_never_gone)

    def close(self, video_id: str, job: str) -> None:
        """Closes a job's decoder, in the background."""
        # A context of its own: calls in the request's context may be cancelled.
        task = asyncio.get_running_loop().create_task(self._close(video_id, job), context=Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _close(self, video_id: str, job: str) -> None:
        try:
            await self._handle(video_id).close.remote(video_id, job)
        except (RayError, BackPressureError, DeploymentUnavailableError):
            # The replica closes those whose last use is longest ago by itself.
            return

    async def upload(self, video: RequestedVideo, deadline: Deadline) -> None:
        """Sends a request's file to VideoReader, from where it is missing there.

        Raises:
            VideoNotCached: the request did not bring the file.
            InvalidVideo, TooLarge, Unavailable: see `facts`.
        """
        if video.source is None:
            raise VideoNotCached(GONE)
        offset = 0
        while True:
            part = await asyncio.to_thread(_part, video.source, offset)
            held: int = await self._call("append", video, deadline, offset, part)
            if held == offset + len(part) and len(part) < PART_BYTES:
                break
            if held >= offset and not part:
                break
            offset = held
        await self._call("finish", video, deadline)

    async def _with_file(self, ask: Callable[[], Awaitable[T]], video: RequestedVideo, deadline: Deadline) -> T:
        """Asks, and sends the file before asking again if it is not kept."""
        for _ in range(UPLOADS):
            with suppress(VideoNotCached):
                return await ask()
            if video.source is None:
                raise VideoNotCached(GONE)
            with suppress(VideoNotCached):
                await self.upload(video, deadline)
        return await ask()

    async def _call(self, method: str, video: RequestedVideo, deadline: Deadline, *arguments: Any) -> Any:
        send = partial(getattr(self._handle(video.video_id), method).remote, video.video_id, *arguments)
        return await self._calls.retries.call(send, deadline, "VideoReader")

    def _handle(self, video_id: str) -> "DeploymentHandle[Any]":
        return self._reader.options(session_id=affinity(video_id))


async def _is_never_gone() -> bool:
    """VideoReader always has replicas: a handle that knows of none learns of them, or they are starting."""
    return False


def _part(source: BinaryIO, offset: int) -> bytes:
    source.seek(offset)
    return source.read(PART_BYTES)
