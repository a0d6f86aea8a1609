"""Reads JPEG XL with imagecodecs; its size from the header, as ISO/IEC 18181-1 has it."""

from typing import BinaryIO

import numpy as np
from PIL import Image

from deployments.errors import InvalidImage
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.colours import shown
from deployments.pictures.exif import upright_size
from deployments.pictures.extra import library
from deployments.pictures.faults import decoding
from deployments.pictures.raster import Raster

KIND = "a JPEG XL picture"
CODESTREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
PARTIAL_CODESTREAM_BOX = b"jxlp"
CODESTREAM_BOX = b"jxlc"

# Enough for the size and the orientation.
HEADER_BYTES = 32
MAX_BOXES = 1000

EIGHT_BIT = 8
SIZE_BITS = (9, 13, 18, 30)
ASPECT_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def matches(head: bytes) -> bool:
    """Whether the file is a JPEG XL codestream or container."""
    return head.startswith((CODESTREAM, CONTAINER))


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns the upright picture's width and height; every frame is shown at this size.

    Raises:
        InvalidImage: the file has no codestream, or ends within its header.
    """
    return _header(file)[0]


def is_deep(file: BinaryIO, options: PictureOptions) -> bool:
    """Returns whether samples may have more than 8 bits; errors as `size`."""
    return _header(file)[1] != EIGHT_BIT


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes a frame, upright: `H×W×3` uint8 over `background`, or `H×W×C` of more bits as the file has them.

    Raises:
        InvalidImage: the file is damaged, has no such frame, or imagecodecs is missing.
        TooLarge: there is not enough memory for the pixels.
    """
    imagecodecs = library("imagecodecs", KIND)
    file.seek(0)
    with decoding(KIND):
        samples = imagecodecs.jpegxl_decode(file.read(), index=options.page_number(), numthreads=1)
        samples = samples if samples.ndim == 3 else samples[:, :, None]
        if samples.dtype == np.uint8:
            image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
            return Raster(shown(image, None, options.background), description=KIND)
        if samples.shape[2] == 2:
            samples = samples[:, :, [0, 0, 0, 1]]
        return Raster(samples, description=KIND)


def _header(file: BinaryIO) -> tuple[tuple[int, int], int | None]:
    """The upright picture's size, and the bits of its samples; None for floats, or behind what is not read here."""
    bits = _Bits(_codestream_header(file))
    is_small = bits.take(1)
    height = 8 * (bits.take(5) + 1) if is_small else bits.take(SIZE_BITS[bits.take(2)]) + 1
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = ASPECT_RATIOS[ratio - 1]
        width = height * numerator // denominator
    else:
        width = 8 * (bits.take(5) + 1) if is_small else bits.take(SIZE_BITS[bits.take(2)]) + 1
    if bits.take(1):
        # All other fields have their defaults.
        return (width, height), EIGHT_BIT
    turn, has_more = 1, 0
    if bits.take(1):
        turn = bits.take(3) + 1
        # An intrinsic size, a preview, an animation, each with a header of its own.
        has_more = bits.take(3)
    depth = None if has_more or bits.take(1) else (8, 10, 12, 0)[bits.take(2)] or bits.take(6) + 1
    return upright_size((width, height), turn), depth


class _Bits:
    """Reads numbers of some bits, the lowest bit of the first byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise InvalidImage(f"image: is damaged or truncated: {KIND} that ends within its header")
        self._left -= count
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value


def _codestream_header(file: BinaryIO) -> bytes:
    """What follows a codestream's signature."""
    file.seek(0)
    if file.read(2) == CODESTREAM:
        return file.read(HEADER_BYTES)
    offset = 0
    for _ in range(MAX_BOXES):
        file.seek(offset)
        header = file.read(16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        start = 16 if length == 1 else 8
        if name in {CODESTREAM_BOX, PARTIAL_CODESTREAM_BOX}:
            file.seek(offset + start + (4 if name == PARTIAL_CODESTREAM_BOX else 0) + len(CODESTREAM))
            return file.read(HEADER_BYTES)
        length = int.from_bytes(header[8:16], "big") if length == 1 else length
        if length < start:
            break
        offset += length
    raise InvalidImage(f"image: is damaged or truncated: {KIND} without a codestream")
