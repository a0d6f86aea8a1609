"""The frames of an animated picture or the pages of a TIFF, by Pillow: in this process, or in a helper."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from PIL import Image

from deployments.errors import InvalidImage, TooLarge
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.faults import BOMBS, DECODER_ERRORS, decoding
from deployments.pictures.isolated import HELPERS, Helpers
from deployments.pictures.pil_image import raster_by_info, raster_formats
from deployments.pictures.raster import Picture
from deployments.pictures.steps import show

T = TypeVar("T")

ANIMATIONS = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
"""Pillow's names of the formats of which it reads all frames."""


def opened_as(path: Path) -> tuple[str, bool] | None:
    """Returns as what Pillow opens a file, and whether that may hold several pictures; None if it does not.

    Raises:
        TooLarge: it has so many pixels that Pillow refuses it.
    """
    try:
        with Image.open(path, formats=raster_formats()) as image:
            # To count the frames may take long, and is done once, when the file is opened to be read.
            return str(image.format), bool(getattr(image, "is_animated", False))
    except BOMBS as error:
        raise TooLarge(f"video: its frames have more than the pixels that are accepted: {error}") from error
    except DECODER_ERRORS:
        return None


class AnimationFrames:
    """An open file of one of ANIMATIONS. Holds one decoded frame at a time.

    Attributes:
        format: Pillow's name.
        count: how many frames there are.
        size: width and height of the canvas, in pixels, before it is turned upright.

    Raises:
        OSError and others of DECODER_ERRORS: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
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
        if self.format == "PNG" and self._first + index < self._image.tell():
            # Pillow 13.0 goes back in an animated PNG only once, and then finds "frame sequence errors".
            self._image = Image.open(self._file, formats=ANIMATIONS)
        self._image.seek(self._first + index)
        with decoding("a frame"):
            return show(raster_by_info(self._image, options.background), options)

    def duration_s(self, index: int) -> float:
        """Returns for how long a frame is shown, in seconds."""
        self._image.seek(self._first + index)
        if self.format in ("WEBP", "AVIF"):
            # Only then does Pillow know it.
            self._image.load()
        return float(self._image.info.get("duration", 0) / 1000)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


# ---- in a helper

FileVersion: TypeAlias = tuple[str, int, int]

_kept: list[tuple[FileVersion, AnimationFrames]] = []
"""The file whose frames were asked for last in this process, a helper: it stays open for its next frame."""


def _in_helper(path: Path) -> AnimationFrames:
    stat = path.stat()
    version = (str(path), stat.st_ino, stat.st_mtime_ns)
    if not _kept or _kept[0][0] != version:
        while _kept:
            _kept.pop()[1].close()
        _kept.append((version, AnimationFrames(path)))
    return _kept[0][1]


def _facts_of(path: Path) -> tuple[str, int, tuple[int, int]]:
    frames = _in_helper(path)
    return frames.format, frames.count, frames.size


def _picture_of(path: Path, index: int, options: PictureOptions) -> Picture:
    return _in_helper(path).picture(index, options)


def _duration_of(path: Path, index: int) -> float:
    return _in_helper(path).duration_s(index)


class IsolatedFrames:
    """As AnimationFrames, but helper processes have the file open and send a frame at a time.

    Args:
        path: of the file; helpers read it themselves.
        kind: what it is, with its article, for messages.
        helpers: where it is read; None is those of this process.

    Raises:
        InvalidImage: the file is damaged, or the decoder crashed.
        FileNotFoundError: the file is not there any more.
        Overloaded: no helper became free in time.
    """

    def __init__(self, path: Path, kind: str, helpers: Helpers | None = None) -> None:
        self._path, self._kind = path, kind
        self._helpers = HELPERS if helpers is None else helpers
        self.format, self.count, self.size = self._call(_facts_of)

    def picture(self, index: int, options: PictureOptions) -> Picture:
        """See AnimationFrames."""
        return self._call(_picture_of, index, options)

    def duration_s(self, index: int) -> float:
        """See AnimationFrames."""
        return self._call(_duration_of, index)

    def close(self) -> None:
        """Does nothing: a helper closes a file when it opens the next."""

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return self._helpers.call(self._kind, function, self._path, *args)
        except InvalidImage:
            # A file that was deleted is no damaged one.
            self._path.stat()
            raise
