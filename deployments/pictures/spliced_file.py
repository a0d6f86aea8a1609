"""SplicedFile: a file as if some of its parts were not there."""

import io
from collections.abc import Sequence
from typing import BinaryIO, cast


class SplicedFile(io.RawIOBase):
    """Some ranges of another file, one after the other, without a copy of it.

    Args:
        file: the other file; it must stay open, and its position moves.
        ranges: offset and length of each range, none of them empty.
    """

    def __init__(self, file: BinaryIO, ranges: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self._file = file
        self._ranges = ranges
        self._position = 0
        self._size = sum(length for _, length in ranges)
        # The range that the position is in, and where it begins here.
        self._range, self._start = 0, 0

    def readable(self) -> bool:
        """See io.IOBase."""
        return True

    def seekable(self) -> bool:
        """See io.IOBase."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.IOBase."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        if self._position < self._start:
            self._range, self._start = 0, 0
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See io.RawIOBase."""
        while self._range < len(self._ranges) and self._position >= self._start + self._ranges[self._range][1]:
            self._start += self._ranges[self._range][1]
            self._range += 1
        if self._range == len(self._ranges):
            return 0
        offset, length = self._ranges[self._range]
        into = self._position - self._start
        self._file.seek(offset + into)
        data = self._file.read(min(len(buffer), length - into))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def spliced(file: BinaryIO, ranges: Sequence[tuple[int, int]]) -> BinaryIO:
    """Returns a SplicedFile with a buffer, so that each read gives as much as it is asked for."""
    return cast(BinaryIO, io.BufferedReader(SplicedFile(file, ranges)))
