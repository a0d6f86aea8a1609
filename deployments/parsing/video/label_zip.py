"""LabelZip: an answer as a zip of label images, written from its beginning to its end."""

import struct
import zlib
from typing import Any

import orjson

JANUARY_1980 = (0, 1 << 5 | 1)
"""MS-DOS's time and date: the same answer is the same file."""

VERSION, VERSION_ZIP64 = 20, 45
"""Of the format that a reader must know, times ten."""

STORED = 0
"""The method of compression: none, since PNGs are compressed already."""

MOST_IN_2, MOST_IN_4 = 0xFFFF, 0xFFFFFFFF
"""Stand in fields that are too small for their number, which a zip64 record holds."""


class LabelZip:
    """A zip: `video.json`, a PNG for each frame, and at the end `done.json` or `error.json`.

    Sizes and checksums stand before the content of each entry, so that it can be read before the rest has come.
    `zipfile` writes them after the content where it cannot seek, and holds an object for each entry until the end. Here
    only the list of entries is held that the zip ends with: 55 bytes a frame, 5.5 MB for 100,000 frames. The format is
    that of PKWARE's APPNOTE.TXT.

    Args:
        digits: of a frame's index in its name, at least.
        start: how many bytes precede the zip in its file.
    """

    media_type = "application/zip"
    comment = b""

    def __init__(self, digits: int = 5, start: int = 0) -> None:
        self._digits = digits
        self._written = start
        self._count = 0
        self._directory = bytearray()

    def head(self, facts: dict[str, Any]) -> bytes:
        """See Lines."""
        return self._entry("video.json", orjson.dumps(facts))

    def frame(self, index: int, text: bytes) -> bytes:
        """See Lines."""
        return self._entry(f"{index:0{self._digits}}.png", text)

    def end(self, result: dict[str, Any]) -> bytes:
        """See Lines."""
        name = "done.json" if "done" in result else "error.json"
        written = self._entry(name, orjson.dumps(result))
        return b"".join((written, self._directory, self._end_records()))

    def _entry(self, name: str, content: bytes) -> bytes:
        """Writes an entry, and adds it to the directory."""
        encoded, offset = name.encode("ascii"), self._written
        # Where an entry begins is the only number that can be too large.
        is_far = offset >= MOST_IN_4
        extra = struct.pack("<2HQ", 1, 8, offset) if is_far else b""
        version = VERSION_ZIP64 if is_far else VERSION
        facts = struct.pack("<4H3L", 0, STORED, *JANUARY_1980, zlib.crc32(content), len(content), len(content))
        lengths = struct.pack("<2H", len(encoded), len(extra))
        self._directory += struct.pack("<4s2H", b"PK\x01\x02", version, version) + facts + lengths
        # Length of a comment, number of the disk, attributes of two kinds.
        self._directory += struct.pack("<3H2L", 0, 0, 0, 0, MOST_IN_4 if is_far else offset) + encoded + extra
        header = struct.pack("<4sH", b"PK\x03\x04", VERSION) + facts + struct.pack("<2H", len(encoded), 0)
        written = b"".join((header, encoded, content))
        self._written += len(written)
        self._count += 1
        return written

    def _end_records(self) -> bytes:
        """Writes where the directory is, twice if its numbers are too large for the record that all readers know."""
        count, size, offset = self._count, len(self._directory), self._written
        record = struct.pack(
            "<4s4H2LH",
            *(b"PK\x05\x06", 0, 0, min(count, MOST_IN_2), min(count, MOST_IN_2)),
            *(min(size, MOST_IN_4), min(offset, MOST_IN_4), 0),
        )
        if count < MOST_IN_2 and size < MOST_IN_4 and offset < MOST_IN_4:
            return record
        numbers = (VERSION_ZIP64, VERSION_ZIP64, 0, 0, count, count, size, offset)
        large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, *numbers)
        return large + struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + size, 1) + record
