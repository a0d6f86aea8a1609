"""Film: a video file, read by PyAV."""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray

from deployments.errors import InvalidVideo, TooLarge
from deployments.frames.hdr import TRANSFERS, to_srgb
from deployments.frames.video import Video, VideoFrame, checked, missing_frame, of_one_size
from deployments.messages.arrays import RgbArray
from deployments.messages.video import VideoFacts
from deployments.settings import Limits

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,ivf"
"""FFmpeg's readers that are used. Others open further files or addresses that the upload names."""

HD_LINES = 720
"""Players take a frame of so many lines without colour tags for BT.709, and a smaller one for BT.601."""

DECODER_THREADS = 4
"""Of each decoder: every one of them holds frames of its own, and by default there is one for each processor."""

SEEK_BACK_S = (0.0, 1.0, 5.0, 30.0)
"""How far before a frame to look for one from which the decoder can begin: the nearest may be shown after it."""

CUT_S = 1.0
"""A file whose packets end so much before the length in its header is cut off."""

UNSPECIFIED = 2
"""Of matrix coefficients, in ITU-T H.273."""


class Film(Video):
    """A video file, read by PyAV.

    Frames are found by their time stamps: a first pass over the packets, without decoding, lists those of all frames.
    """

    _container: Any = None
    _pipe: "_Pipe | None" = None

    def __init__(self, path: Path, limits: Limits, max_frames: int) -> None:
        self._path = path
        # FFmpeg decodes some frames to find out what a file holds: before their size can be checked here.
        self._codec_options = {"max_pixels": str(limits.max_pixels)}
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
            if self._has_stamps and first.pts is not None:
                # A recording may begin amid frames that need others before them, which it does not hold.
                self._stamps = self._stamps[min(bisect_left(self._stamps, first.pts), len(self._stamps) - 1) :]
            height, width = _upright(first, np.zeros((first.height, first.width))).shape
            duration_s = self._time_s(self._stamps[-1]) - self._time_s(self._stamps[0])
            fps = (len(self._stamps) - 1) / duration_s if duration_s > 0 else None
            if fps is None and self._stream.average_rate:
                fps = float(self._stream.average_rate)
            times = np.array([self._time_s(stamp) for stamp in self._stamps])
            facts = VideoFacts(width, height, len(self._stamps), fps, self._is_cut, times)
            self.facts = checked(facts, limits, max_frames)
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
        # PyAV hands options on to the decoders too that find out what the file holds.
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file", **self._codec_options}
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
        self._stream = max(streams, key=_prominence)
        self._stream.thread_type = "AUTO"
        if self._stream.codec_context is not None:
            self._stream.codec_context.thread_count = DECODER_THREADS
            self._stream.codec_context.options = self._codec_options

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
        checked(VideoFacts(size.width, size.height, 1, None), limits, 1)

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

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[VideoFrame]:
        """See Video."""
        end = self.facts.num_frames
        if self.facts.is_cut and stop > end:
            yield from self.frames(start, end, step)
            raise missing_frame(max(start, end))
        stop = min(stop, end)
        if start >= stop:
            return
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
                if (index - start) % step:
                    continue
                yield VideoFrame(index, self._time_s(self._stamps[index]), self._rgb(frame, index))

    def _decode(self) -> tuple[int, Any]:
        """Decodes one frame, and returns it with its index."""
        try:
            frame = next(self._running, None)
        except av.FFmpegError as error:
            raise missing_frame(self._next) from error
        if frame is None:
            raise missing_frame(self._next)
        self._count += 1
        if not self._has_stamps or frame.pts is None:
            return self._count - 1, frame
        self._count = bisect_left(self._stamps, frame.pts) + 1
        return self._count - 1, frame

    def _seek(self, index: int) -> None:
        """Goes to `index`, or to a frame before it from which the decoder can begin."""
        self._next, self._held = index, None
        if index and self._has_stamps and self._pipe is None:
            for back_s in SEEK_BACK_S:
                stamp = self._stamps[index] - int(back_s / self._stream.time_base)
                if stamp >= self._stamps[0] and self._begins(stamp, self._stamps[index]):
                    return
        # From the beginning, where the file cannot seek, or does so inexactly.
        self._open()
        self._running, self._count = self._decoded(), 0

    def _begins(self, stamp: int, needed: int) -> bool:
        """Seeks to a time stamp; returns whether decoding can begin there, at a frame that is not later than `needed`.

        Some decoders begin anywhere, and give damaged pictures up to the next frame that needs no other. And in an
        MPEG programme stream, where few frames have time stamps of their own, those that FFmpeg works out after it has
        been amid them may be wrong.
        """
        try:
            self._container.seek(stamp, stream=self._stream)
            first = next(self._decoded(), None)
            if first is None or not first.key_frame or first.pts is None or first.pts > needed:
                return False
            if self._stamps[bisect_left(self._stamps, first.pts)] != first.pts:
                return False
            self._container.seek(stamp, stream=self._stream)
        except av.FFmpegError:
            return False
        self._running = self._decoded()
        return True

    def _decoded(self) -> Iterator[Any]:
        return iter(self._container.decode(self._stream))

    def _rgb(self, frame: Any, index: int) -> RgbArray:
        return of_one_size(np.ascontiguousarray(_upright(frame, _converted(frame))), self.facts, index)

    def close(self) -> None:
        """See Video."""
        for opened in (self._container, self._pipe):
            if opened is not None:
                opened.close()
        self._container = self._pipe = None


def _prominence(stream: Any) -> tuple[bool, int, int]:
    """Orders video streams by how much they show: one whose format is unknown has no size."""
    context = stream.codec_context
    return (context is not None, context.width * context.height if context is not None else 0, stream.frames)


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
