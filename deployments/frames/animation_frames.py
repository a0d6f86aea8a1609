"""The frames of an animated picture or the pages of a TIFF, by Pillow: in this process, or in a helper."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from deployments.errors import InvalidImage, TooLarge
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.faults import DECODER_ERRORS, decoding
from deployments.pictures.heif import use_all_cores
from deployments.pictures.isolated import HELPERS, Helpers
from deployments.pictures.pil_image import raster_by_info, raster_formats
from deployments.pictures.pillow_guard import pillow_guard
from deployments.pictures.raster import Picture
from deployments.pictures.steps import show

T = TypeVar("T")

ANIMATIONS = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
"""Pillow's names of the formats of which it reads all frames."""


def opened_as(path: Path, max_pixels: int) -> tuple[str, bool] | None:
    """Returns as what Pillow opens a file, and whether that may hold several pictures; None if it does not.

    Args:
        path: of the file.
        max_pixels: the most pixels of a frame that are accepted.

    Raises:
        TooLarge: it has so many pixels that Pillow refuses it.
    """
    use_all_cores()
    try:
        with pillow_guard(max_pixels), Image.open(path, formats=raster_formats()) as image:
            # To count the frames may take long, and is done once, when the file is opened to be read.
            return str(image.format), bool(getattr(image, "is_animated", False))
    except TooLarge as error:
        raise TooLarge(f"video: its frames have more than the {max_pixels} pixels that are accepted") from error
    except DECODER_ERRORS:
        return None


class AnimationFrames:
    """An open file of one of ANIMATIONS. Holds one decoded frame at a time.

    Args:
        path: of the file.
        max_pixels: the most pixels of a frame that are accepted, by Pillow's own guard against huge images.

    Attributes:
        format: Pillow's name.
        count: how many frames there are.
        size: width and height of the canvas, in pixels, before it is turned upright.

    Raises:
        OSError and others of DECODER_ERRORS: the file is damaged.
        TooLarge: Pillow's guard refuses a frame, when it is opened or later.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        use_all_cores()
        self._file = path.open("rb")
        try:
            with pillow_guard(max_pixels):
                image: Any = Image.open(self._file, formats=ANIMATIONS)
                self._image = image
                self._first = int(bool(image.info.get("default_image")))
                self.format: str = image.format
                self.count: int = image.n_frames - self._first
                self.size: tuple[int, int] = image.size
        except BaseException:
            self.close()
            raise

    def picture(self, index: int, options: PictureOptions) -> Picture:
        """Returns a frame as an image that is sent by itself: also upright, and 16 bits as 8."""
        with pillow_guard(self._max_pixels):
            if self.format == "PNG" and self._first + index < self._image.tell():
                # Pillow 13.0 goes back in an animated PNG only once, and then finds "frame sequence errors".
                self._image = Image.open(self._file, formats=ANIMATIONS)
            self._image.seek(self._first + index)
            with decoding("a frame"):
                return show(raster_by_info(self._image, options.background), options)

    def duration_s(self, index: int) -> float:
        """Returns for how long a frame is shown, in seconds."""
        with pillow_guard(self._max_pixels):
            self._image.seek(self._first + index)
            if self.format in ("WEBP", "AVIF"):
                # Only then does Pillow know it.
                self._image.load()
        return float(self._image.info.get("duration", 0) / 1000)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


# ---- in a helper

_kept: dict[int, AnimationFrames] = {}
"""The file whose frames were asked for last in this process, a helper, by its key: it stays open for its next frame."""


def _in_helper(key: int, path: Path, max_pixels: int) -> AnimationFrames:
    for other in [one for one in _kept if one != key]:
        _close(other)
    # One that was deleted is gone, whether this helper still has it open or not.
    path.stat()
    if key not in _kept:
        _kept[key] = AnimationFrames(path, max_pixels)
    return _kept[key]


def _close(key: int) -> None:
    if key in _kept:
        _kept.pop(key).close()


def _facts_of(key: int, path: Path, max_pixels: int) -> tuple[str, int, tuple[int, int]]:
    frames = _in_helper(key, path, max_pixels)
    return frames.format, frames.count, frames.size


def _picture_of(key: int, path: Path, max_pixels: int, index: int, options: PictureOptions) -> Picture:
    return _in_helper(key, path, max_pixels).picture(index, options)


def _duration_of(key: int, path: Path, max_pixels: int, index: int) -> float:
    return _in_helper(key, path, max_pixels).duration_s(index)


# ---- in the process that asks

_keys = count(1)


class IsolatedFrames:
    """As AnimationFrames, but a helper process has the file open and sends a frame at a time.

    The helper that has the file open is asked again if it is free; else another one opens the file too.

    Args:
        path: of the file; helpers read it themselves.
        max_pixels: see AnimationFrames.
        kind: what it is, with its article, for messages.
        helpers: where it is read; None is those of this process.

    Raises:
        InvalidImage: the file is damaged, or the decoder crashed.
        FileNotFoundError: the file is not there any more.
        Overloaded: no helper became free in time.
    """

    def __init__(self, path: Path, max_pixels: int, kind: str, helpers: Helpers | None = None) -> None:
        self._path, self._max_pixels, self._kind = path, max_pixels, kind
        self._helpers = HELPERS if helpers is None else helpers
        self._key = next(_keys)
        try:
            self.format, self.count, self.size = self._call(_facts_of)
        except BaseException:
            self.close()
            raise

    def picture(self, index: int, options: PictureOptions) -> Picture:
        """See AnimationFrames."""
        return self._call(_picture_of, index, options)

    def duration_s(self, index: int) -> float:
        """See AnimationFrames."""
        return self._call(_duration_of, index)

    def close(self) -> None:
        """Closes the file in each helper that has it open; one that is at work closes it when it has ended that."""
        self._helpers.release(self._key, _close, self._key)

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        try:
            arguments = (self._key, self._path, self._max_pixels, *args)
            return self._helpers.call(self._kind, function, *arguments, key=self._key)
        except InvalidImage:
            # A file that was deleted is no damaged one.
            self._path.stat()
            raise
