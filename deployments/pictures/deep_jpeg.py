"""Reads JPEG, JPEG-LS and JPEG 2000 of more than 8 bits a sample with imagecodecs; Pillow keeps 8 of them, or none."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from deployments.errors import InvalidImage
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import jpeg
from deployments.pictures.exif import orientation, upright_samples, upright_size
from deployments.pictures.extra import library
from deployments.pictures.faults import check_page, decoding
from deployments.pictures.kinds import HEAD_BYTES
from deployments.pictures.raster import Raster

KIND = "a JPEG picture of more than 8 bits"

JPEG_LS_FRAME = 0xF7
APP1, EXIF = 0xE1, b"Exif\0\0"
JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
CODESTREAM_AND_SIZE = b"\xff\x4f\xff\x51"


@dataclass(frozen=True)
class JpegFrame:
    """What a frame's header says.

    Attributes:
        codec: the function of imagecodecs that decodes it.
        size: width and height.
        bits: of a sample.
        is_signed: whether samples may be negative.
        orientation: what EXIF metadata say, 1 to 8.
    """

    codec: str
    size: tuple[int, int]
    bits: int
    is_signed: bool
    orientation: int = 1


def matches(head: bytes) -> bool:
    """Whether the file is JPEG-LS, or JPEG or JPEG 2000 of more than 8 bits a sample."""
    frame = _frame(head)
    return frame is not None and (frame.bits > 8 or frame.codec == "jpegls_decode")


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns the upright picture's width and height.

    Raises:
        InvalidImage: the header is damaged.
        InvalidRequest: `page` is not 0.
    """
    check_page(options.page_number(), 1)
    frame = _read_frame(file)
    return upright_size(frame.size, frame.orientation)


def is_deep(file: BinaryIO, _: PictureOptions) -> bool:
    """Returns whether samples have more than 8 bits; errors as `size`."""
    return _read_frame(file).bits > 8


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes the picture to `H×W×C` samples as they are stored, upright.

    Raises:
        InvalidImage: the file is damaged, or imagecodecs is missing.
        InvalidRequest: `page` is not 0.
        TooLarge: there is not enough memory for the pixels.
    """
    size(file, options)
    frame = _read_frame(file)
    imagecodecs = library("imagecodecs", KIND)
    file.seek(0)
    with decoding(KIND):
        samples = getattr(imagecodecs, frame.codec)(file.read())
        samples = samples if samples.ndim == 3 else samples[:, :, None]
        full = None if frame.is_signed or frame.bits <= 8 else (0.0, 2.0**frame.bits - 1)
        return Raster(upright_samples(samples, frame.orientation), description=KIND, full=full)


def _read_frame(file: BinaryIO) -> JpegFrame:
    file.seek(0)
    frame = _frame(file.read(HEAD_BYTES))
    if frame is None:
        raise InvalidImage(f"image: is damaged or truncated: {KIND} without a frame")
    return frame


def _frame(head: bytes) -> JpegFrame | None:
    try:
        if head.startswith(jpeg.START_OF_IMAGE):
            return _frame_of_jpeg(head)
        return _frame_of_jpeg_2000(head) if head.startswith(JPEG_2000) else None
    except (struct.error, IndexError):
        # The head ends within the header.
        return None


def _frame_of_jpeg(head: bytes) -> JpegFrame | None:
    """ITU-T T.81, B.2.2; T.87 has the same."""
    turned = 1
    for marker, content in jpeg.segments(head):
        if marker == APP1 and content.startswith(EXIF):
            turned = orientation(content)
        if marker in jpeg.FRAMES or marker == JPEG_LS_FRAME:
            bits, height, width = struct.unpack_from(">BHH", content)
            codec = "jpegls_decode" if marker == JPEG_LS_FRAME else "jpeg8_decode"
            return JpegFrame(codec, (width, height), bits, is_signed=False, orientation=turned)
    return None


def _frame_of_jpeg_2000(head: bytes) -> JpegFrame | None:
    """ITU-T T.800, A.5.1: the size segment, which follows the start of the codestream."""
    at = head.find(CODESTREAM_AND_SIZE)
    if at < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", head, at + 8)
    (components,) = struct.unpack_from(">H", head, at + 40)
    depths = [head[at + 42 + 3 * component] for component in range(components)]
    if not depths:
        return None
    deepest = max(depths, key=lambda depth: depth & 0x7F)
    return JpegFrame("jpeg2k_decode", (right - left, bottom - top), (deepest & 0x7F) + 1, bool(deepest & 0x80))
