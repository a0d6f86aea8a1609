"""Reads JPEG XL with imagecodecs; its size from the header, as ISO/IEC 18181-1 has it."""

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.errors import InvalidImage
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.colours import shown
from deployments.pictures.exif import upright_size
from deployments.pictures.extra import library
from deployments.pictures.faults import check_page, decoding
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


@dataclass(frozen=True)
class JxlHeader:
    """What a codestream's first bits say.

    Attributes:
        size: width and height of the upright picture.
        bits: of a sample; None if samples are floats, or the header has parts that are not read here.
        is_animation: whether there may be several frames.
    """

    size: tuple[int, int]
    bits: int | None
    is_animation: bool


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns the upright picture's width and height; every frame is shown at this size.

    Raises:
        InvalidImage: the file has no codestream, or ends within its header.
        InvalidRequest: a still picture is asked for another page than 0.
    """
    header = _header(file)
    if not header.is_animation:
        check_page(options.page_number(), 1)
    return header.size


def is_deep(file: BinaryIO, _: PictureOptions) -> bool:
    """Returns whether samples may have more than 8 bits; errors as `size`."""
    return _header(file).bits != EIGHT_BIT


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes a frame, upright: `H×W×3` uint8 over `background`, or `H×W×C` of more bits as the file has them.

    Raises:
        InvalidImage: the file is damaged, or imagecodecs is missing.
        InvalidRequest: it has no such frame.
        TooLarge: there is not enough memory for the pixels.
    """
    imagecodecs = library("imagecodecs", KIND)
    size(file, options)
    header = _header(file)
    file.seek(0)
    with decoding(KIND):
        samples = _frame(imagecodecs, file.read(), options.page_number(), header.size)
        if samples.dtype == np.uint8:
            image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
            return Raster(shown(image, None, options.background), description=KIND)
        full = (0.0, 2.0**header.bits - 1) if header.bits and samples.dtype.kind == "u" else None
        return Raster(samples, description=KIND, full=full)


def _frame(imagecodecs: Any, content: bytes, page: int, shown_size: tuple[int, int]) -> NDArray[Any]:
    """A frame's samples, `H×W×C`."""
    if page == 0:
        samples = imagecodecs.jpegxl_decode(content, index=0, numthreads=1)
    else:
        # For an index beyond the last frame, imagecodecs returns memory that nothing was written to.
        frames = imagecodecs.jpegxl_decode(content, numthreads=1)
        check_page(page, len(frames))
        samples = frames[page]
    result: NDArray[Any] = samples.reshape(shown_size[1], shown_size[0], -1)
    return result


def _header(file: BinaryIO) -> JxlHeader:
    bits = _Bits(_codestream_header(file))
    stored = _stored_size(bits)
    if bits.take(1):
        # All other fields have their defaults.
        return JxlHeader(stored, EIGHT_BIT, False)
    turn, is_animation = 1, False
    if bits.take(1):
        turn = bits.take(3) + 1
        if bits.take(1):
            # The size that it should be shown at on a page.
            _stored_size(bits)
        if bits.take(1):
            # The header of a preview is not read here.
            return JxlHeader(upright_size(stored, turn), None, False)
        is_animation = bool(bits.take(1))
    is_unknown = is_animation or bits.take(1)
    depth = None if is_unknown else (8, 10, 12, 0)[bits.take(2)] or bits.take(6) + 1
    return JxlHeader(upright_size(stored, turn), depth, is_animation)


def _stored_size(bits: "_Bits") -> tuple[int, int]:
    """Width and height, as a size header has them (ISO/IEC 18181-1, D.2)."""
    is_small = bits.take(1)
    height = 8 * (bits.take(5) + 1) if is_small else bits.take(SIZE_BITS[bits.take(2)]) + 1
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = ASPECT_RATIOS[ratio - 1]
        return height * numerator // denominator, height
    return 8 * (bits.take(5) + 1) if is_small else bits.take(SIZE_BITS[bits.take(2)]) + 1, height


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
