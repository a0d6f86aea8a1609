"""Reads camera raw files (DNG, CR2, CR3, NEF, ARW and others) with rawpy, LibRaw: the developed picture."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from deployments.errors import InvalidImage
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.extra import library
from deployments.pictures.faults import check_page, decoding
from deployments.pictures.raster import Raster

KIND = "a camera raw file"

# What raw files begin with that are no plain TIFF: Canon CR2 and CRW, Olympus, Panasonic, Fujifilm, Sigma, Minolta.
SIGNATURES = (
    (8, b"CR\x02"),
    (6, b"HEAPCCDR"),
    (0, b"IIRO"),
    (0, b"IIRS"),
    (0, b"MMOR"),
    (0, b"IIU\0"),
    (0, b"FUJIFILMCCD-RAW"),
    (0, b"FOVb"),
    (0, b"\0MRM"),
    (4, b"ftypcrx "),
)

SUB_DIRECTORIES, PHOTOMETRIC, COMPRESSION, DNG_VERSION = 0x014A, 0x0106, 0x0103, 0xC612
COLOUR_FILTER_ARRAY = 32803
# Of Sony, Nikon, Samsung and Pentax; no other TIFF has them.
RAW_COMPRESSIONS = {32767, 34713, 32770, 32772, 65535}

TYPE_BYTES = {1: 1, 3: 2, 4: 4, 13: 4}
MAX_DIRECTORIES = 32
MAX_ENTRIES = 1024
QUARTER_TURN = 4
"""The bit of LibRaw's `flip` that exchanges width and height."""


def matches(head: bytes) -> bool:
    """Whether the file is camera raw by its first bytes; of a TIFF, `is_raw_tiff` tells."""
    return any(head[offset:].startswith(signature) for offset, signature in SIGNATURES)


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns the developed picture's width and height, upright.

    Raises:
        InvalidImage: LibRaw does not know the camera, the file is damaged, or rawpy is missing.
        InvalidRequest: `page` is not 0.
    """
    with _opened(file, options.page_number()) as raw:
        width, height, aspect = raw.sizes.iwidth, raw.sizes.iheight, raw.sizes.pixel_aspect
        # As LibRaw stretches pixels that are not square: always to more of them.
        if aspect > 1:
            width = int(width * aspect + 0.5)
        elif 0 < aspect < 1:
            height = int(height / aspect + 0.5)
        return (height, width) if raw.sizes.flip & QUARTER_TURN else (width, height)


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Develops the picture: `H×W×3` uint8 sRGB, upright, with the white balance that the camera chose.

    Raises:
        InvalidImage, InvalidRequest: as `size` does.
        TooLarge: there is not enough memory for the pixels.
    """
    with _opened(file, options.page_number()) as raw:
        return Raster(raw.postprocess(use_camera_wb=True, output_bps=8), description=KIND)


def is_deep(*_: object) -> bool:
    """Returns that samples come out with 8 bits."""
    return False


@contextmanager
def _opened(file: BinaryIO, page: int) -> Iterator[Any]:
    rawpy = library("rawpy", KIND)
    check_page(page, 1)
    file.seek(0)
    try:
        with decoding(KIND), rawpy.imread(file) as raw:
            yield raw
    except rawpy.LibRawError as error:
        raise InvalidImage(f"image: is {KIND} that LibRaw does not read: {error}") from error


def is_raw_tiff(file: BinaryIO) -> bool:
    """Whether a file is a TIFF that holds camera raw, wherever in it its directories are.

    A TIFF is camera raw if it is a DNG, or if one of its pictures holds samples behind a colour filter array, or
    compressed as only cameras do; a camera's name in it does not make it one.

    Args:
        file: can seek.
    """
    file.seek(0)
    head = file.read(8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8:
        return False
    waiting = list(struct.unpack_from(f"{order}I", head, 4))
    for _ in range(MAX_DIRECTORIES):
        if not waiting:
            return False
        tags, following = _directory(file, order, waiting.pop())
        if (
            DNG_VERSION in tags
            or tags.get(PHOTOMETRIC) == (COLOUR_FILTER_ARRAY,)
            or RAW_COMPRESSIONS & {*tags.get(COMPRESSION, ())}
        ):
            return True
        waiting += [*tags.get(SUB_DIRECTORIES, ()), *following]
    return False


def _directory(file: BinaryIO, order: str, offset: int) -> tuple[dict[int, tuple[int, ...]], list[int]]:
    """A TIFF directory's whole numbers by their tags, and where the next one is; what is there, if it is cut off."""
    tags: dict[int, tuple[int, ...]] = {}
    try:
        (entries,) = struct.unpack(f"{order}H", _bytes_at(file, offset, 2))
        if entries > MAX_ENTRIES:
            return tags, []
        table = _bytes_at(file, offset + 2, 12 * entries + 4)
        for at in range(0, 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", table, at)
            if kind not in TYPE_BYTES or count > MAX_DIRECTORIES:
                continue
            length = count * TYPE_BYTES[kind]
            (elsewhere,) = struct.unpack_from(f"{order}I", table, at + 8)
            value = table[at + 8 : at + 8 + length] if length <= 4 else _bytes_at(file, elsewhere, length)
            code = {1: "B", 2: "H", 4: "I"}[TYPE_BYTES[kind]]
            tags[tag] = struct.unpack(f"{order}{count}{code}", value)
        (following,) = struct.unpack_from(f"{order}I", table, 12 * entries)
    except struct.error:
        return tags, []
    return tags, [following] if following else []


def _bytes_at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)
