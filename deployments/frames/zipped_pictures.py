"""ZippedPictures: a zip that holds one picture a frame."""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from deployments.errors import InvalidImage, InvalidVideo, TooLarge
from deployments.frames.video import Video, VideoFrame, checked, of_one_size
from deployments.messages.arrays import RgbArray
from deployments.messages.video import VideoFacts
from deployments.parsing.images import identify
from deployments.settings import Limits


class ZippedPictures(Video):
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
            self.facts = checked(VideoFacts(width, height, len(self._files), None), limits, max_frames)
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

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[VideoFrame]:
        """See Video."""
        for index in range(start, min(stop, self.facts.num_frames), step):
            yield VideoFrame(index, None, of_one_size(self._picture(index), self.facts, index))

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
