"""Turns what clients send as an image into an RGB array and its image_id."""

import hashlib
import io
import math
import re
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from deployments.errors import InvalidImage, InvalidRequest, TooLarge
from deployments.messages.arrays import RgbArray
from deployments.messages.calls import AnswerSize
from deployments.parsing.deadline import Deadline
from deployments.settings import Limits

ImageInput: TypeAlias = bytes | RgbArray | Image.Image

IMAGE_ID = re.compile("[0-9a-f]{64}")

# Formats that are not raster images: Pillow reads them by running or emulating another program, or reads only their
# metadata. IPTC is among them because it can wrap an image of any format, including the others.
NOT_RASTER = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "IPTC"}

# Pillow's own guard against huge images: a warning beyond its limit, an error beyond twice the limit.
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)

# The errors besides UnidentifiedImageError that Pillow's decoders raise on broken files.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class IdentifiedImage:
    """An image with a known image_id and checked header, which is decoded only where its pixels are needed.

    Attributes:
        image_id: SHA-256, as hex, of the uploaded bytes; for an array or PIL image, of its upright RGB pixels and
            shape.
        source: the file or its bytes, or the `H×W×3` uint8 pixels if the caller gave those; None if only the image_id
            was given.
        decoded_bytes: size of the pixels that `decode` returns; 0 if the source holds them already. During decoding,
            Pillow's own copies take two to four times as much.
        fetch: for a frame of a video, gets its pixels by a deadline; there is then no source.
    """

    image_id: str
    source: bytes | BinaryIO | RgbArray | None
    decoded_bytes: int = 0
    fetch: Callable[[Deadline], Awaitable[RgbArray]] | None = None

    @property
    def has_pixels(self) -> bool:
        """Whether the request can supply the image's pixels."""
        return self.source is not None or self.fetch is not None

    def decode(self, limits: Limits) -> RgbArray:
        """Returns the upright image, `H×W×3` uint8 RGB.

        Args:
            limits: the same as for `identify`.

        Raises:
            InvalidImage: the file is damaged or truncated.
            TooLarge: there is not enough memory for the pixels.
        """
        assert self.source is not None
        if isinstance(self.source, np.ndarray):
            return self.source
        with _opened(self.source, limits.max_pixels) as image:
            return upright_rgb(image)


def image_by_id(image_id: str) -> IdentifiedImage:
    """Returns an image of which only the id is given.

    Raises:
        InvalidRequest: the id is malformed.
    """
    if not isinstance(image_id, str) or not IMAGE_ID.fullmatch(image_id):
        raise InvalidRequest("image_id: must be the 64 hexadecimal digits of a SHA-256, as X-Image-Id has them")
    return IdentifiedImage(image_id, None)


def identify(image: ImageInput | BinaryIO, limits: Limits, answer: AnswerSize | None = None) -> IdentifiedImage:
    """Computes an image's image_id and checks its size, without decoding the file.

    Args:
        image: an image file or its bytes, a PIL image, or an `H×W×3` uint8 RGB array. EXIF orientation is applied to
            all but arrays; alpha is dropped; 16-bit images keep their high byte; an animation is read as its first
            frame.
        limits: the largest file and image that are accepted.
        answer: the size of the answer and its limit; None skips this check.

    Raises:
        InvalidImage: the image cannot be read, or the array has another shape or type.
        TooLarge: the image has too many bytes or pixels, or the answer too many numbers.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, limits, answer)
    if isinstance(image, Image.Image):
        _check_size(image.size, limits, answer)
        return _from_pixels(upright_rgb(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _from_file(bytes(image), limits, answer)
    if isinstance(image, io.IOBase):
        return _from_file(cast(BinaryIO, image), limits, answer)
    raise InvalidImage(f"image: must be bytes, a PIL image or a numpy array, is {type(image).__name__}")


def _from_array(array: RgbArray, limits: Limits, answer: AnswerSize | None) -> IdentifiedImage:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        shape = "×".join(map(str, array.shape))
        raise InvalidImage(f"image: an array must be H×W×3 uint8 in RGB order, is {shape} {array.dtype}")
    _check_size((array.shape[1], array.shape[0]), limits, answer)
    return _from_pixels(np.ascontiguousarray(array))


def _from_pixels(pixels: RgbArray) -> IdentifiedImage:
    digest = hashlib.sha256(f"RGB {pixels.shape}".encode())
    digest.update(pixels.data)
    return IdentifiedImage(digest.hexdigest(), pixels)


def _from_file(source: bytes | BinaryIO, limits: Limits, answer: AnswerSize | None) -> IdentifiedImage:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise InvalidImage("image: the file is empty")
    if size > limits.max_image_bytes:
        raise TooLarge(f"image: has {size} bytes, more than the {limits.max_image_bytes} that are accepted")
    with _opened(file, limits.max_pixels) as image:
        _check_size(image.size, limits, answer)
        decoded_bytes = 3 * math.prod(image.size)
    file.seek(0)
    return IdentifiedImage(hashlib.file_digest(cast(io.BytesIO, file), "sha256").hexdigest(), source, decoded_bytes)


@contextmanager
def _opened(source: bytes | BinaryIO, max_pixels: int) -> Iterator[Image.Image]:
    """Opens the file and reads its header; Pillow's errors inside the block are raised as the service's own."""
    # `max_pixels` is checked before decoding. Only an image inside an icon file is decoded while the file is opened;
    # the only guard against its size is Pillow's own.
    Image.MAX_IMAGE_PIXELS = max_pixels
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    file.seek(0)
    try:
        with Image.open(file, formats=raster_formats()) as image:
            yield image
    except UnidentifiedImageError as error:
        raise InvalidImage("image: is not an image in a format that can be read") from error
    except BOMBS as error:
        raise TooLarge(f"image: has more than the {max_pixels} pixels that are accepted") from error
    except DECODER_ERRORS as error:
        raise InvalidImage(f"image: is damaged or truncated: {error}") from error


def raster_formats() -> list[str]:
    """Returns Pillow's names of the formats that are read."""
    Image.init()
    return [name for name in Image.ID if name not in NOT_RASTER]


def _check_size(size: tuple[int, int], limits: Limits, answer: AnswerSize | None) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage(f"image: is {width}×{height} pixels")
    if width * height > limits.max_pixels:
        raise TooLarge(
            f"image: has {width}×{height} = {width * height} pixels, more than the {limits.max_pixels} accepted"
        )
    if answer is not None:
        answer.check((height, width))


def upright_rgb(image: Image.Image) -> RgbArray:
    """Returns an opened image as upright RGB pixels, `H×W×3` uint8. Damage to pixels shows here, as they are decoded.

    Raises:
        InvalidImage: the file is damaged or truncated.
        TooLarge: there is not enough memory for the pixels.
    """
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            return _high_byte(np.asarray(upright))
        if upright.mode == "F":
            return _scaled(np.asarray(upright))
        return np.ascontiguousarray(upright.convert("RGB"))
    except BOMBS as error:
        raise TooLarge(f"image: {error}") from error
    except MemoryError as error:
        raise TooLarge("image: needs more memory to decode than there is") from error
    except DECODER_ERRORS as error:
        raise InvalidImage(f"image: is damaged or truncated: {error}") from error


def _high_byte(grey: NDArray[np.integer]) -> RgbArray:
    """Converts 16-bit grey to RGB. Pillow would clip at 255, which turns most such images white."""
    if grey.max() > 255:
        grey = grey.clip(0, 65535).astype(np.uint16, copy=False) >> 8
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _scaled(grey: NDArray[np.float32]) -> RgbArray:
    """Converts float grey to RGB: values in [0, 1], as in scientific images, or else in [0, 255]."""
    values = np.nan_to_num(grey)
    if values.max() <= 1:
        values = values * 255
    return np.repeat(values.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
