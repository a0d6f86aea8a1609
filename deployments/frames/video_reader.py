"""VideoReader, the CPU deployment that keeps uploaded videos on disk and decodes their frames when they are asked for.

Calls for a video go to the same replica. Nothing is lost with a replica: whoever uploaded the file sends it again.
"""

import asyncio
import fcntl
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from deployments.errors import InvalidVideo, ServiceError, TooLarge, VideoNotCached
from deployments.frames.decode import open_video
from deployments.frames.file_store import FileStore
from deployments.frames.video import Video, VideoFrame
from deployments.messages.arrays import RgbArray
from deployments.messages.video import GONE, FrameBatch, VideoFacts
from deployments.settings import Limits, VideoReaderConfig
from deployments.telemetry.metrics import VideoMetrics

T = TypeVar("T")

DECODING_THREADS = 4

MAX_FACTS = 1000
"""Videos whose facts are remembered. The times of the longest are 1.6 MB."""

MAX_OPEN = 16
"""Open videos, each of which holds a decoder: some MB for HD. One whose last use is longest ago is closed."""

BACKWARD_BYTES = 256 * 2**20
"""Bytes of decoded frames that are kept for all jobs in reverse order together: decoders run forwards only, so frames
are decoded some at a time and then given from the last to the first. A job that decodes takes a share, as many of which
there are as threads; frames of jobs whose last use is longest ago are dropped for it, and decoded again later."""

MAX_ENDED = 1000
"""Jobs that have ended of which it is remembered: a decoder that is still at work for one is closed, not kept."""

MAX_AHEAD = 32
"""Frames that are decoded ahead in reverse order."""

SWEEP_S = 60.0
"""At most so long after its time a video is deleted."""

FOLDER_NAME, LOCK = "segment-anything-2-videos", "lock"


@dataclass(eq=False)
class _Cursor:
    """An open video, and frames that are decoded already, for a job in reverse order."""

    video: Video
    ahead: dict[int, VideoFrame] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes of the frames."""
        return sum(frame.pixels.nbytes for frame in self.ahead.values())


class VideoReader:
    """Keeps videos by their SHA-256, and decodes them.

    Args:
        limits: the limits of a video.
        folder: where files are kept; None is a folder in the system's folder for temporary files.
    """

    def __init__(self, limits: Limits, folder: Path | None = None) -> None:
        self._limits = limits
        config = VideoReaderConfig()
        self._store = FileStore(_own_folder(folder), config.video_cache_bytes, config.video_ttl_s)
        self._metrics = VideoMetrics()
        self._facts: dict[str, VideoFacts] = {}
        self._cursors: OrderedDict[tuple[str, str], _Cursor] = OrderedDict()
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()
        # Bytes that threads may have in frames which they decode ahead right now.
        self._reserved = 0
        self._lock = threading.Lock()
        self._sweeping: asyncio.Task[None] | None = None
        # The store is for one thread. Decoding has some of its own, so that a long video does not delay an upload.
        self._storing = ThreadPoolExecutor(1, thread_name_prefix="store-video")
        self._decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode-video")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies the deployment's `user_config` (VideoReaderConfig), at the start and whenever it changes."""
        config = VideoReaderConfig.model_validate(user_config)
        await self._stored(self._store.configure, config.video_cache_bytes, config.video_ttl_s)
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweeping = asyncio.create_task(self._sweep(min(SWEEP_S, config.video_ttl_s / 2)))

    async def _sweep(self, every_s: float) -> None:
        """Deletes videos in time, even if no call comes, and all that is remembered of them."""
        while True:
            await asyncio.sleep(every_s)
            # A file that cannot be deleted now is tried again.
            with suppress(OSError):
                await self._forget_old()

    async def _forget_old(self) -> None:
        left = set(await self._stored(self._store.expire))
        self._facts = {video_id: facts for video_id, facts in self._facts.items() if video_id in left}
        with self._lock:
            gone = {video_id for video_id, _ in self._cursors} - left
        for video_id in gone:
            await self._decoded(self._close, video_id)

    # ---- files

    async def append(self, video_id: str, offset: int, part: bytes) -> int:
        """Appends a part to a file; see `FileStore.append`."""
        return await self._stored(self._store.append, video_id, offset, part)

    async def finish(self, video_id: str) -> None:
        """Checks a file that has arrived; see `FileStore.finish`."""
        await self._stored(self._store.finish, video_id)

    async def facts(self, video_id: str) -> VideoFacts:
        """Returns what is known of a video.

        Raises:
            VideoNotCached: the file is not here, or not any more.
            InvalidVideo, TooLarge: the file cannot be read, or is over a limit; it is deleted.
        """
        path = await self._path(video_id)
        if video_id not in self._facts:
            try:
                facts = await self._decoded(self._read_facts, path)
            except FileNotFoundError as error:
                await self.forget(video_id)
                raise VideoNotCached(GONE) from error
            except (InvalidVideo, TooLarge):
                await self.forget(video_id)
                raise
            self._facts[video_id] = facts
            while len(self._facts) > MAX_FACTS:
                self._facts.pop(next(iter(self._facts)))
            return facts
        return self._facts[video_id]

    async def forget(self, video_id: str) -> bool:
        """Deletes a video; returns whether it was here."""
        self._facts.pop(video_id, None)
        await self._decoded(self._close, video_id)
        return await self._stored(self._store.forget, video_id)

    async def _path(self, video_id: str) -> Path:
        path = await self._stored(self._store.get, video_id)
        if path is None:
            self._facts.pop(video_id, None)
            raise VideoNotCached(GONE)
        return path

    def _read_facts(self, path: Path) -> VideoFacts:
        with self._open(path) as video:
            return video.facts

    def _open(self, path: Path) -> Video:
        return open_video(path, self._limits, self._limits.max_video_frames)

    # ---- frames

    async def read(self, video_id: str, job: str, frames: range) -> FrameBatch:
        """Decodes some frames of a video.

        Args:
            video_id: SHA-256 of the file.
            job: who reads: each job has a decoder of its own, which goes on where it has stopped.
            frames: which ones; in reverse order too.

        Returns:
            The frames, and a fault if the file is not here, or if a frame of it cannot be decoded.
        """
        try:
            path = await self._path(video_id)
            batch = await self._decoded(self._read, path, (video_id, job), frames)
        except FileNotFoundError:
            # Deleted to make room after it was looked for; or from outside, so that it must be sent again.
            await self.forget(video_id)
            return FrameBatch((), (), VideoNotCached(GONE))
        except ServiceError as error:
            return FrameBatch((), (), error.with_traceback(None))
        self._metrics.decoded(len(batch.indices))
        return batch

    async def close(self, video_id: str, job: str) -> None:
        """Closes a job's decoder; the job has ended."""
        await self._decoded(self._close, video_id, job)

    def _read(self, path: Path, key: tuple[str, str], frames: range) -> FrameBatch:
        share = BACKWARD_BYTES // DECODING_THREADS if frames.step < 0 else 0
        cursor = self._taken(key, share)
        try:
            cursor = cursor or _Cursor(self._open(path))
            batch = _batch(cursor, frames, share)
        except BaseException:
            with self._lock:
                self._reserved -= share
            if cursor is not None:
                cursor.video.close()
            raise
        self._put_back(key, cursor, share)
        return batch

    def _taken(self, key: tuple[str, str], share: int) -> _Cursor | None:
        """Takes a cursor out, so that no other thread uses or closes it; makes room for a share of decoded frames."""
        with self._lock:
            cursor = self._cursors.pop(key, None)
            self._reserved += share
            surplus = self._reserved + sum(one.nbytes for one in self._cursors.values()) - BACKWARD_BYTES
            for one in self._cursors.values() if surplus > 0 else ():
                surplus -= one.nbytes
                one.ahead = {}
                if surplus <= 0:
                    break
            return cursor

    def _put_back(self, key: tuple[str, str], cursor: _Cursor, share: int) -> None:
        with self._lock:
            self._reserved -= share
            surplus = [self._cursors.pop(key, None)]
            if key in self._ended:
                surplus.append(cursor)
            else:
                self._cursors[key] = cursor
            surplus += [self._cursors.popitem(last=False)[1] for _ in range(len(self._cursors) - MAX_OPEN)]
        for one in surplus:
            if one is not None:
                one.video.close()

    def _close(self, video_id: str, job: str | None = None) -> None:
        with self._lock:
            keys = [key for key in self._cursors if key[0] == video_id and job in (None, key[1])]
            closed = [self._cursors.pop(key) for key in keys]
            if job is not None:
                self._ended[video_id, job] = None
                if len(self._ended) > MAX_ENDED:
                    self._ended.popitem(last=False)
        for one in closed:
            one.video.close()

    # ---- threads

    async def _stored(self, run: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._storing, self._counted, run, *arguments)

    def _counted(self, run: Callable[..., T], *arguments: Any) -> T:
        try:
            return run(*arguments)
        finally:
            self._metrics.holds(len(self._store), self._store.nbytes)

    async def _decoded(self, run: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoding, run, *arguments)


def _batch(cursor: _Cursor, frames: range, share: int) -> FrameBatch:
    """Reads frames up to the first that cannot be decoded; see `VideoReader.read`."""
    indices: list[int] = []
    pixels: list[RgbArray] = []
    fault: ServiceError | None = None
    try:
        for frame in _backward(cursor, frames, share) if frames.step < 0 else _forward(cursor, frames):
            indices.append(frame.index)
            pixels.append(frame.pixels)
    except (InvalidVideo, TooLarge) as error:
        fault = error.with_traceback(None)
    return FrameBatch(tuple(indices), tuple(pixels), fault)


def _forward(cursor: _Cursor, frames: range) -> Iterator[VideoFrame]:
    cursor.ahead = {}
    return cursor.video.frames(frames.start, frames.stop, frames.step)


def _backward(cursor: _Cursor, frames: range, share: int) -> Iterator[VideoFrame]:
    """Yields frames in reverse order; decodes some more before them, which are asked for next, in `share` bytes."""
    facts = cursor.video.facts
    most = max(1, min(MAX_AHEAD, share // (3 * facts.width * facts.height)))
    for index in frames:
        if index not in cursor.ahead:
            first = max(index % -frames.step, index + frames.step * (most - 1))
            # Before there are others.
            cursor.ahead = {}
            try:
                cursor.ahead = {one.index: one for one in cursor.video.frames(first, index + 1, -frames.step)}
            except (InvalidVideo, TooLarge):
                # Perhaps one of those that are asked for later.
                cursor.ahead = {one.index: one for one in cursor.video.frames(index, index + 1)}
        frame = cursor.ahead.pop(index, None)
        if frame is not None:
            yield frame


def _own_folder(parent: Path | None) -> Path:
    """Returns a folder for this process's files, which stays locked; deletes those that no process has locked."""
    parent = (parent or Path(tempfile.gettempdir())) / FOLDER_NAME
    parent.mkdir(parents=True, exist_ok=True)
    # One process at a time: another would delete the folder that is made and not locked yet.
    with (parent / LOCK).open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for left in parent.iterdir():
            with suppress(OSError), (left / LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=parent))
        # The file stays open, and locked, until the process ends, however it ends.
        fcntl.flock(os.open(folder / LOCK, os.O_CREAT | os.O_WRONLY), fcntl.LOCK_EX)
    return folder / "files"
