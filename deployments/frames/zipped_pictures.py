"""ZippedPictures: a zip that holds one picture a frame."""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from deployments.errors import InvalidImage, InvalidVideo, TooLarge
from deployments.frames.video import Video, VideoFrame, checked, of_one_size
from deployments.messages.picture_options import PictureOptions
from deployments.messages.video import VideoFacts
from deployments.parsing.images import identify
from deployments.pictures.raster import Picture
from deployments.settings import Limits

DIRECTORY_BYTES = 128 * 2**20
"""Bytes of a zip's directory, the list of its entries, which is read as a whole."""

ENTRY = struct.Struct("<28x3H12x")
"""An entry of the directory: lengths of its name, extra field and comment, which follow."""

ZIP64_RECORDS = 76
"""Bytes between the directory and the end record, in a zip that is large."""


class ZippedPictures(Video):
    """A zip of pictures of one size, in the order of their names, in which numbers count as numbers."""

    def __init__(self, path: Path, limits: Limits, max_frames: int) -> None:
        self._limits = limits
        self._options = PictureOptions()
        try:
            _check_directory(path, 2 * max_frames + 1000)
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, struct.error, NotImplementedError) as error:
            raise InvalidVideo(f"video: is a zip file that is damaged: {error}") from error
        try:
            files = [one for one in self._zip.infolist() if not one.is_dir() and not _is_hidden(one.filename)]
            self._files = sorted(files, key=lambda one: _by_numbers(one.filename))
            if not self._files:
                raise InvalidVideo("video: is a zip file that holds no pictures")
            first = self._picture(0)
            # All frames are shown in the window of the first: a mask follows what keeps its brightness.
            self._options = PictureOptions(window=first.window or "auto")
            height, width, _ = first.pixels.shape
            self.facts = checked(VideoFacts(width, height, len(self._files), None), limits, max_frames)
        except BaseException:
            self.close()
            raise

    def _picture(self, index: int) -> Picture:
        entry = self._files[index]
        where = f"video: frame {index}, {entry.filename!r}"
        # What the zip says of a picture's size is checked before any of it is inflated.
        if entry.file_size > self._limits.max_image_bytes:
            raise TooLarge(
                f"{where}, has {entry.file_size} bytes, more than the {self._limits.max_image_bytes} accepted"
            )
        try:
            content = self._zip.read(entry)
            picture = identify(content, self._limits)
            # A picture of 8 bits among deeper ones stays as it is.
            return (replace(picture, options=self._options) if picture.is_deep else picture).read(self._limits)
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise InvalidVideo(f"{where}, cannot be unpacked: {error}") from error
        except (InvalidImage, TooLarge) as error:
            kind = TooLarge if isinstance(error, TooLarge) else InvalidVideo
            raise kind(f"{where}, {error.message.removeprefix('image: ')}") from error

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[VideoFrame]:
        """See Video."""
        for index in range(start, min(stop, self.facts.num_frames), step):
            yield VideoFrame(index, None, of_one_size(self._picture(index).pixels, self.facts, index))

    def close(self) -> None:
        """See Video."""
        self._zip.close()


def _check_directory(path: Path, most: int) -> None:
    """Refuses a zip that is read only into gigabytes of memory: `ZipFile` makes an object of each entry.

    Raises:
        TooLarge: it has more than so many entries, or their names are too long.
    """
    with path.open("rb") as file:
        # As `ZipFile` itself finds the directory. Offsets in it may count from another place than the file's start.
        record = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if record is None:
            return
        signature, size, end = record[0], record[5], record[9]
        if size > DIRECTORY_BYTES:
            raise TooLarge(f"video: is a zip file whose directory has more than the {DIRECTORY_BYTES} bytes accepted")
        end -= ZIP64_RECORDS if signature == b"PK\x06\x06" else 0
        file.seek(max(0, end - size))
        for count in range(size // ENTRY.size + 1):
            header = file.read(ENTRY.size)
            if len(header) < ENTRY.size or file.tell() > end:
                return
            if count >= most:
                raise TooLarge(f"video: is a zip file of more than {most} entries")
            file.seek(sum(ENTRY.unpack(header)), 1)


def _is_hidden(name: str) -> bool:
    """Returns whether a file is one of those that file managers add: `.DS_Store`, or anything in `__MACOSX`."""
    parts = name.split("/")
    return parts[-1].startswith(".") or parts[0] == "__MACOSX" or parts[-1] in ("Thumbs.db", "desktop.ini")


def _by_numbers(name: str) -> list[tuple[int, int, str]]:
    """Returns a key by which `2.png` comes before `10.png`.

    Of two numbers without leading zeros the longer one is the larger. They stay text, since Python refuses to read
    numbers of more than 4,300 digits.
    """
    parts = re.split("([0-9]+)", name)
    numbers = [part.lstrip("0") for part in parts[1::2]]
    return [
        (0, len(numbers[place // 2]), numbers[place // 2]) if place % 2 else (1, 0, part)
        for place, part in enumerate(parts)
    ]
