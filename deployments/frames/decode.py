"""Decodes video files: what they hold, and their frames, upright, in RGB, in the order in which they are shown.

Video files are read by PyAV; animated pictures by Pillow, which composes their frames; a zip holds one picture a frame.
"""

import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray
from PIL import Image

from deployments.errors import InvalidImage, InvalidVideo, TooLarge
from deployments.frames.hdr import TRANSFERS, to_srgb
from deployments.messages.arrays import RgbArray
from deployments.parsing.images import identify
from deployments.settings import Limits

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,ivf"
"""FFmpeg's readers that are used. Others open further files or addresses that the upload names."""

ANIMATIONS = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
"""Pillow's names of the formats of which it reads all frames."""

ZIP_MAGIC = b"PK\x03\x04"
HD_LINES = 720
"""Players take a frame of so many lines without colour tags for BT.709, and a smaller one for BT.601."""

CUT_S = 1.0
"""A file whose packets end so much before the length in its header is cut off."""

UNSPECIFIED = 2
"""Of matrix coefficients, in ITU-T H.273."""


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video before its frames are decoded.

    Attributes:
        width: of an upright frame, in pixels.
        height: of an upright frame, in pixels.
        num_frames: the number of frames that the file holds. Fewer may be decoded if it is damaged.
        fps: the average number of frames a second, or None where frames have no times.
        is_cut: whether the file says that there is more than it holds: it was cut off, and its last frames are missing.
    """

    width: int
    height: int
    num_frames: int
    fps: float | None
    is_cut: bool = False


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame.

    Attributes:
        index: 0 for the first one that is shown.
        time_s: when it is shown, in seconds from the file's start; None where frames have no times.
        pixels: `H×W×3` uint8 RGB, upright.
    """

    index: int
    time_s: float | None
    pixels: RgbArray


class Video(ABC):
    """An open video file, for one thread. Holds one decoded frame at a time.

    Attributes:
        facts: what is known before frames are decoded.
    """

    facts: VideoFacts

    @abstractmethod
    def frames(self, start: int, stop: int) -> Iterator[VideoFrame]:
        """Decodes frames `start` to `stop` − 1, or to the last one, in the order in which they are shown.

        Raises:
            InvalidVideo: a frame is damaged, or of another size than the others, or missing since the file is cut off;
                the message gives the frame's index.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_video(path: Path, limits: Limits, max_frames: int) -> Video:
    """Opens a video file and reads what it holds, without decoding it.

    Raises:
        InvalidVideo: it is not a video in a format that can be read, or holds no frames.
        TooLarge: frames have too many pixels, or there are too many frames.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise InvalidVideo("video: the file is empty")
    if start.startswith(ZIP_MAGIC):
        return _Pictures(path, limits, max_frames)
    if _is_animation(path):
        return _Animation(path, limits, max_frames)
    return _Film(path, limits, max_frames)


def _checked(facts: VideoFacts, limits: Limits, max_frames: int) -> VideoFacts:
    if facts.width * facts.height > limits.max_pixels:
        raise TooLarge(
            f"video: its frames have {facts.width}×{facts.height} = {facts.width * facts.height} pixels, more than the "
            f"{limits.max_pixels} accepted"
        )
    if facts.num_frames > max_frames:
        raise TooLarge(f"video: has more than the {max_frames} frames that are accepted")
    if not facts.num_frames:
        raise InvalidVideo("video: holds no frames")
    return facts


def _missing(index: int) -> InvalidVideo:
    return InvalidVideo(f"video: frame {index} cannot be decoded: the file is cut off or damaged there")


# ---- video files


class _Film(Video):
    """A video file, read by PyAV.

    Frames are found by their time stamps: a first pass over the packets, without decoding, lists those of all frames.
    """

    _container: Any = None
    _pipe: "_Pipe | None" = None

    def __init__(self, path: Path, limits: Limits, max_frames: int) -> None:
        self._path = path
        self._is_cut = False
        self._has_stamps = True
        try:
            self._open()
            with self._faults():
                self._check_codec(limits)
                self._stamps = self._time_stamps(max_frames)
                self._start_s = (self._container.start_time or 0) / av.time_base
                self._open()
                first = next(self._decoded(), None)
            if first is None:
                raise InvalidVideo("video: no frame can be decoded")
            height, width = _upright(first, np.zeros((first.height, first.width))).shape
            duration_s = self._time_s(self._stamps[-1]) - self._time_s(self._stamps[0])
            fps = (len(self._stamps) - 1) / duration_s if duration_s > 0 else None
            if fps is None and self._stream.average_rate:
                fps = float(self._stream.average_rate)
            self.facts = _checked(VideoFacts(width, height, len(self._stamps), fps, self._is_cut), limits, max_frames)
            self._open()
        except BaseException:
            self.close()
            raise
        self._running = self._decoded()
        # The next frame to give, how many frames are decoded, and one that was decoded before its turn.
        self._next = self._count = 0
        self._held: tuple[int, Any] | None = None

    def _open(self) -> None:
        """Opens the file anew, at its beginning."""
        self.close()
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
        with self._faults():
            if not self._is_cut:
                try:
                    self._container = av.open(str(self._path), options=options, metadata_errors="ignore")
                except av.FFmpegError:
                    self._is_cut = True
            if self._is_cut:
                # Of a file that it can seek in, FFmpeg reads all of the headers first. It refuses a fragmented mp4
                # whose last one is cut off, but plays what is there if it may only read on and on.
                self._pipe = _Pipe(self._path)
                self._container = av.open(self._pipe, options=options, metadata_errors="ignore")
        # A cover picture is a video stream too.
        covers = av.stream.Disposition.attached_pic
        streams = [one for one in self._container.streams.video if not one.disposition & covers]
        if not streams:
            kinds = {one.type for one in self._container.streams}
            what = "only sound" if kinds == {"audio"} else "no video"
            raise InvalidVideo(f"video: holds {what}")
        # Some players choose the one with most pixels; of an animated picture it is the one with most frames.
        self._stream = max(streams, key=lambda one: (one.width * one.height, one.frames))
        self._stream.thread_type = "AUTO"

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Raises FFmpeg's errors inside the block as the service's own."""
        try:
            yield
        except av.FFmpegError as error:
            cause = error.strerror or type(error).__name__
            raise InvalidVideo(f"video: is not a video in a format that can be read, or is damaged: {cause}") from error

    def _check_codec(self, limits: Limits) -> None:
        if self._stream.codec_context is None:
            raise InvalidVideo("video: its frames are encrypted, or in a format that cannot be read")
        size = self._stream.codec_context
        _checked(VideoFacts(size.width, size.height, 1, None), limits, 1)

    def _time_stamps(self, most: int) -> list[int]:
        """Returns the time stamps of all frames, ascending, in units of the stream's time base."""
        stamps: list[int] = []
        packets, end_s = 0, 0.0
        try:
            for packet in self._container.demux():
                # AVI gives no time stamps of frames, but those at which to decode.
                stamp = packet.pts if packet.pts is not None else packet.dts
                if packet.size and stamp is not None and packet.time_base:
                    end_s = max(end_s, float((stamp + (packet.duration or 0)) * packet.time_base))
                # Packets to be discarded lie outside of what an edit list shows; the last one is empty.
                packets += packet.stream is self._stream and packet.size > 0
                self._is_cut = self._is_cut or packet.is_corrupt
                if packet.stream is self._stream and packet.size and not packet.is_discard:
                    self._has_stamps = self._has_stamps and packet.pts is not None
                    stamps.append(len(stamps) if stamp is None else stamp)
                    if len(stamps) > most:
                        raise TooLarge(f"video: has more than the {most} frames that are accepted")
        except av.FFmpegError:
            self._is_cut = True
        if not stamps:
            raise InvalidVideo("video: holds no frames")
        promised_s = (self._container.duration or 0) / av.time_base
        lost_s = promised_s + (self._container.start_time or 0) / av.time_base - end_s
        self._is_cut = self._is_cut or lost_s > CUT_S or len(self._stream.index_entries) > packets
        return sorted(set(stamps))

    def _time_s(self, stamp: int) -> float:
        return float(stamp * self._stream.time_base) - self._start_s

    def frames(self, start: int, stop: int) -> Iterator[VideoFrame]:
        """See Video."""
        end = self.facts.num_frames
        if self.facts.is_cut and stop > end:
            yield from self.frames(start, end)
            raise _missing(max(start, end))
        stop = min(stop, end)
        if start != self._next:
            self._seek(start)
        while self._next < stop:
            index, frame = self._held or self._decode()
            self._held = None
            if index >= stop:
                # There are packets that give no frame.
                self._held, self._next = (index, frame), stop
                return
            if index >= self._next:
                self._next = index + 1
                yield VideoFrame(index, self._time_s(self._stamps[index]), self._rgb(frame, index))

    def _decode(self) -> tuple[int, Any]:
        """Decodes one frame, and returns it with its index."""
        try:
            frame = next(self._running, None)
        except av.FFmpegError as error:
            raise _missing(self._next) from error
        if frame is None:
            raise _missing(self._next)
        self._count += 1
        if not self._has_stamps or frame.pts is None:
            return self._count - 1, frame
        self._count = bisect_left(self._stamps, frame.pts) + 1
        return self._count - 1, frame

    def _seek(self, index: int) -> None:
        """Goes to `index`, or to a frame before it from which the decoder can begin."""
        self._next, self._held = index, None
        if index and self._has_stamps and self._pipe is None:
            with self._faults():
                self._container.seek(self._stamps[index], stream=self._stream)
                first = next(self._decoded(), None)
                if first is not None and first.pts is not None and first.pts <= self._stamps[index]:
                    self._container.seek(self._stamps[index], stream=self._stream)
                    self._running = self._decoded()
                    return
        # From the beginning, where the file cannot seek, or does so inexactly.
        self._open()
        self._running, self._count = self._decoded(), 0

    def _decoded(self) -> Iterator[Any]:
        return iter(self._container.decode(self._stream))

    def _rgb(self, frame: Any, index: int) -> RgbArray:
        return _of_one_size(np.ascontiguousarray(_upright(frame, _converted(frame))), self.facts, index)

    def close(self) -> None:
        """See Video."""
        for opened in (self._container, self._pipe):
            if opened is not None:
                opened.close()
        self._container = self._pipe = None


class _Pipe:
    """A file that can only be read on and on."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def read(self, size: int) -> bytes:
        """Reads the next bytes."""
        return self._file.read(size)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _converted(frame: Any) -> RgbArray:
    """Converts a frame to sRGB, as its tags say, or as players take frames without tags."""
    transfer = TRANSFERS.get(int(frame.color_trc))
    if transfer is not None:
        return to_srgb(frame.to_ndarray(format="rgb48le"), transfer)
    is_untagged = int(frame.colorspace) == UNSPECIFIED
    source = Colorspace.ITU709 if is_untagged and frame.height >= HD_LINES else None
    pixels: RgbArray = frame.to_ndarray(format="rgb24", src_colorspace=source)
    return pixels


def _upright(frame: Any, pixels: NDArray[Any]) -> NDArray[Any]:
    """Turns and mirrors a frame as its display matrix says.

    The matrix takes x to a·x + c·y and y to b·x + d·y. `frame.rotation` does not tell turned from mirrored frames.
    """
    # `frame.side_data` is a Mapping, but iterating over it gives values, so that `values()` fails.
    matrix = next((one for one in frame.side_data if one.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) < abs(b):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# ---- animated pictures


def _is_animation(path: Path) -> bool:
    """Returns whether Pillow reads the file as one of the formats that may hold several pictures.

    Raises:
        InvalidVideo: it is a still picture.
    """
    try:
        with Image.open(path) as image:
            name, count = image.format, getattr(image, "n_frames", 1)
    except (OSError, ValueError, SyntaxError):
        return False
    if count < 2:
        raise InvalidVideo(f"video: is a still picture ({name}); send it as `image` to the routes for images")
    return name in ANIMATIONS


class _Animation(Video):
    """An animated GIF, WebP, PNG or AVIF, or the pages of a TIFF."""

    def __init__(self, path: Path, limits: Limits, max_frames: int) -> None:
        image: Any = Image.open(path)
        self._image = image
        try:
            self._first = int(bool(image.info.get("default_image")))
            width, height = image.size
            count = image.n_frames - self._first
            _checked(VideoFacts(width, height, count, None), limits, max_frames)
            self._times = self._start_times(count)
        except BaseException:
            self.close()
            raise
        fps = (count - 1) / self._times[-1] if self._times and self._times[-1] > 0 else None
        self.facts = VideoFacts(width, height, count, fps)

    def _start_times(self, count: int) -> list[float]:
        """Returns when each frame is shown, in seconds; [] for a TIFF, whose pages have no times."""
        if self._image.format == "TIFF":
            return []
        times, time_s = [], 0.0
        for index in range(count):
            times.append(time_s)
            self._image.seek(self._first + index)
            if self._image.format in ("WEBP", "AVIF"):
                # Only then does Pillow know for how long the frame is shown.
                self._image.load()
            time_s += self._image.info.get("duration", 0) / 1000
        return times

    def frames(self, start: int, stop: int) -> Iterator[VideoFrame]:
        """See Video."""
        for index in range(start, min(stop, self.facts.num_frames)):
            try:
                self._image.seek(self._first + index)
                pixels = np.asarray(self._image.convert("RGB"))
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise _missing(index) from error
            time_s = self._times[index] if self._times else None
            yield VideoFrame(index, time_s, _of_one_size(pixels, self.facts, index))

    def close(self) -> None:
        """See Video."""
        self._image.close()


# ---- pictures in a zip


class _Pictures(Video):
    """A zip of pictures of one size, in the order of their names, in which numbers count as numbers."""

    def __init__(self, path: Path, limits: Limits, max_frames: int) -> None:
        self._limits = limits
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise InvalidVideo(f"video: is a zip file that is damaged: {error}") from error
        try:
            files = [one for one in self._zip.infolist() if not one.is_dir() and not _is_hidden(one.filename)]
            self._files = sorted(files, key=lambda one: _by_numbers(one.filename))
            if not self._files:
                raise InvalidVideo("video: is a zip file that holds no pictures")
            height, width, _ = self._picture(0).shape
            self.facts = _checked(VideoFacts(width, height, len(self._files), None), limits, max_frames)
        except BaseException:
            self.close()
            raise

    def _picture(self, index: int) -> RgbArray:
        entry = self._files[index]
        where = f"video: frame {index}, {entry.filename!r}"
        # What the zip says of a picture's size is checked before any of it is inflated.
        if entry.file_size > self._limits.max_image_bytes:
            raise TooLarge(
                f"{where}, has {entry.file_size} bytes, more than the {self._limits.max_image_bytes} accepted"
            )
        try:
            content = self._zip.read(entry)
            return identify(content, self._limits).decode(self._limits)
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise InvalidVideo(f"{where}, cannot be unpacked: {error}") from error
        except (InvalidImage, TooLarge) as error:
            kind = TooLarge if isinstance(error, TooLarge) else InvalidVideo
            raise kind(f"{where}, {error.message.removeprefix('image: ')}") from error

    def frames(self, start: int, stop: int) -> Iterator[VideoFrame]:
        """See Video."""
        for index in range(start, min(stop, self.facts.num_frames)):
            yield VideoFrame(index, None, _of_one_size(self._picture(index), self.facts, index))

    def close(self) -> None:
        """See Video."""
        self._zip.close()


def _is_hidden(name: str) -> bool:
    """Returns whether a file is one of those that file managers add: `.DS_Store`, or anything in `__MACOSX`."""
    parts = name.split("/")
    return parts[-1].startswith(".") or parts[0] == "__MACOSX" or parts[-1] in ("Thumbs.db", "desktop.ini")


def _by_numbers(name: str) -> list[tuple[int, int, str]]:
    """Returns a key by which `2.png` comes before `10.png`."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _of_one_size(pixels: RgbArray, facts: VideoFacts, index: int) -> RgbArray:
    height, width = pixels.shape[:2]
    if (width, height) != (facts.width, facts.height):
        raise InvalidVideo(f"video: frame {index} is {width}×{height}; the first one is {facts.width}×{facts.height}")
    return pixels
