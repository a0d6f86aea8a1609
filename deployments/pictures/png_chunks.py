"""PNG files less the chunks that say nothing about pixels, so that damage to those does no harm."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from deployments.errors import InvalidImage
from deployments.pictures.spliced_file import spliced

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# More than any writer makes of 64 MiB; walking through millions of empty ones would take seconds.
MAX_CHUNKS = 200_000

# More than any colour profile that was seen; the text that Pillow allows is shorter than some profiles.
MAX_PROFILE_BYTES = 8 * 2**20

# Ancillary chunks larger than this hold no metadata that is of use here.
MAX_METADATA_BYTES = 16 * 2**20

ANIMATION = {b"fcTL", b"fdAT"}


@dataclass(frozen=True, eq=False)
class Png:
    """A PNG file without its chunks of metadata.

    Attributes:
        file: what is left: the critical chunks, transparency, and animation.
        profile: the ICC profile; None without a readable one.
        exif: the EXIF metadata.
        bit_depth: bits of a sample.
    """

    file: BinaryIO
    profile: bytes | None
    exif: bytes | None
    bit_depth: int


@dataclass(frozen=True)
class _Chunk:
    """Where a chunk lies: its name, the offset of its length field, the number of bytes of its data."""

    name: bytes
    offset: int
    length: int

    @property
    def is_critical(self) -> bool:
        # The fifth bit of the first letter, as the PNG specification says in 5.4.
        return not self.name[0] & 32


def without_metadata(file: BinaryIO) -> Png:
    """Reads the names of a PNG file's chunks and keeps those that make its pixels.

    As libpng does, it ignores an ancillary chunk with a wrong checksum or of a wrong length. What is no chunk stays
    as it is: the decoder refuses it, if it gets there.

    Raises:
        InvalidImage: the file has more chunks than any writer makes.
    """
    chunks, end = _chunks(file)
    size = file.seek(0, io.SEEK_END)
    metadata = {
        chunk.name: _data(file, chunk)
        for chunk in chunks
        if chunk.name in {b"iCCP", b"eXIf", b"acTL", b"tRNS", b"IHDR"} and chunk.length <= MAX_METADATA_BYTES
    }
    header = metadata.get(b"IHDR") or b""
    is_animated = _is_animation(metadata.get(b"acTL"))
    keeps_transparency = _is_transparency(metadata.get(b"tRNS"), header)
    kept = [
        chunk
        for chunk in chunks
        if chunk.is_critical
        or (chunk.name == b"tRNS" and keeps_transparency)
        or (chunk.name in ANIMATION | {b"acTL"} and is_animated)
    ]
    ranges = [(0, len(SIGNATURE))] if size >= len(SIGNATURE) else []
    for start, length in [(chunk.offset, 12 + chunk.length) for chunk in kept] + [(end, size - end)]:
        if length <= 0:
            continue
        if ranges and sum(ranges[-1]) == start:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((start, length))
    return Png(
        file=spliced(file, ranges),
        profile=_profile(metadata.get(b"iCCP")),
        exif=metadata.get(b"eXIf"),
        bit_depth=header[8] if len(header) >= 9 else 8,
    )


def _chunks(file: BinaryIO) -> tuple[list[_Chunk], int]:
    """The chunks, and the offset behind the last; that of the first thing that is no chunk, if there is one."""
    chunks: list[_Chunk] = []
    offset = len(SIGNATURE)
    while len(chunks) < MAX_CHUNKS:
        file.seek(offset)
        header = file.read(8)
        if len(header) < 8 or not header[4:].isalpha():
            return chunks, offset
        (length,) = struct.unpack(">I", header[:4])
        chunks.append(_Chunk(header[4:], offset, length))
        offset += 12 + length
        if header[4:] == b"IEND":
            return chunks, offset
    raise InvalidImage(f"image: is a PNG file of more than {MAX_CHUNKS} chunks")


def _data(file: BinaryIO, chunk: _Chunk) -> bytes | None:
    """A chunk's data; None if its checksum is wrong."""
    file.seek(chunk.offset + 4)
    named = file.read(4 + chunk.length)
    return named[4:] if file.read(4) == struct.pack(">I", zlib.crc32(named)) else None


def _is_animation(control: bytes | None) -> bool:
    return control is not None and len(control) == 8 and control[:4] != b"\0\0\0\0"


def _is_transparency(alpha: bytes | None, header: bytes) -> bool:
    """Whether a tRNS chunk has the length that its colour type asks for (PNG specification, 11.3.2.1)."""
    if alpha is None or len(header) < 10:
        return False
    return {0: len(alpha) == 2, 2: len(alpha) == 6, 3: 0 < len(alpha) <= 256}.get(header[9], False)


def _profile(chunk: bytes | None) -> bytes | None:
    """The profile in an iCCP chunk: a name, a zero, the compression method 0, a zlib stream."""
    _, separator, compressed = (chunk or b"").partition(b"\0")
    if not separator or not compressed.startswith(b"\0"):
        return None
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(compressed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if stream.eof else None
