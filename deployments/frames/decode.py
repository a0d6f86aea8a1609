"""Opens video files: finds out what kind of file it is, and which of the readers reads it."""

from pathlib import Path

from deployments.errors import InvalidVideo
from deployments.frames.animation import Animation, is_animation
from deployments.frames.film import Film
from deployments.frames.video import Video
from deployments.frames.zipped_pictures import ZippedPictures
from deployments.pictures import heif, tiff
from deployments.settings import Limits

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
"""What a zip begins with; the second one is empty."""


def open_video(path: Path, limits: Limits, max_frames: int) -> Video:
    """Opens a video file and reads what it holds, without decoding it.

    Raises:
        InvalidVideo: it is not a video in a format that can be read, or holds no frames.
        TooLarge: frames have too many pixels, or there are too many frames.
    """
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        raise InvalidVideo("video: the file is empty")
    if start.startswith(ZIP_MAGICS):
        return ZippedPictures(path, limits, max_frames)
    kind = _isolated_kind(start)
    if is_animation(path, limits.max_pixels, kind):
        return Animation(path, limits, max_frames, kind)
    return Film(path, limits, max_frames)


def _isolated_kind(head: bytes) -> str:
    """Returns what a file is, with its article, if helper processes read it as those of single images do; else ""."""
    if tiff.matches(head):
        return "a TIFF file"
    return heif.AVIF if heif.is_avif(head) else ""
