"""Turns what clients send as an image into an RGB array and its image_id."""

import hashlib
import io
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.errors import DeadlineExceeded, InvalidImage, InvalidRequest, TooLarge
from deployments.messages.arrays import RgbArray
from deployments.messages.calls import AnswerSize
from deployments.messages.georeference import Georeference, NoGeoreference
from deployments.messages.picture_options import PictureOptions
from deployments.parsing.deadline import Deadline
from deployments.pictures import reader
from deployments.pictures.faults import check_page, decoding
from deployments.pictures.pil_image import raster_by_info
from deployments.pictures.raster import Picture, Raster, bands_text, choose_bands
from deployments.pictures.steps import check_size, show
from deployments.settings import Limits

ImageInput: TypeAlias = bytes | NDArray[Any] | Image.Image

IMAGE_ID = re.compile("[0-9a-f]{64}")

DEFAULT = PictureOptions()

# In an array with fewer rows and more channels than this, channels come first, as in torch, not last.
CHANNELS_FIRST_ROWS, CHANNELS_FIRST_COLUMNS = 4, 64


@dataclass(frozen=True, eq=False)
class IdentifiedImage:
    """An image with a known image_id and checked header, which is decoded only where its pixels are needed.

    Attributes:
        image_id: SHA-256, as hex, of the uploaded bytes, and of the options if they are not the defaults; for an array
            or PIL image, of its upright RGB pixels and shape.
        source: the file or its bytes, or the picture if the caller gave pixels; None if only the image_id was given.
        decoded_bytes: size of the pixels that `decode` returns; 0 if the source holds them already. During decoding,
            samples and copies take two to eight times as much here, and up to 3 GiB in a process of their own.
        fetch: for a frame of a video, gets its pixels by a deadline; there is then no source.
        options: how the file is read.
        is_deep: whether samples may have other types than 8 bits, so that a window is chosen when they are decoded.
        kind: of the file, see PictureFacts; "" if there is none.
        place: of the file, likewise.
    """

    image_id: str
    source: bytes | BinaryIO | Picture | None
    decoded_bytes: int = 0
    fetch: Callable[[Deadline], Awaitable[RgbArray]] | None = None
    options: PictureOptions = field(default=DEFAULT)
    is_deep: bool = False
    kind: str = ""
    place: Georeference | NoGeoreference = reader.ONLY_TIFF

    @property
    def has_pixels(self) -> bool:
        """Whether the request can supply the image's pixels."""
        return self.source is not None or self.fetch is not None

    @property
    def is_isolated(self) -> bool:
        """Whether the file is decoded in a process of its own."""
        return reader.is_isolated_kind(self.kind)

    def read(self, limits: Limits, deadline: Deadline | None = None) -> Picture:
        """Returns the upright picture, and the window in which its samples are shown.

        Args:
            limits: the same as for `identify`.
            deadline: see `identify`.

        Raises:
            InvalidImage: the file is damaged or truncated.
            InvalidRequest: it has no such band.
            TooLarge: there is not enough memory for the pixels.
            Unavailable: the decoders are busy, or the deadline has passed.
        """
        assert self.source is not None
        if isinstance(self.source, Picture):
            return self.source
        return reader.read(_file_of(self.source), self.options, limits.max_pixels, _seconds_left(deadline))

    @property
    def georeference(self) -> Georeference | NoGeoreference:
        """Where the picture lies on a map, or why that is not known."""
        if self.fetch is not None:
            return NoGeoreference("a video's frame has none")
        if self.source is None:
            return NoGeoreference("that of an image_id is not known here: send the file as image")
        return self.place

    def decode(self, limits: Limits) -> RgbArray:
        """Returns the upright image, `H×W×3` uint8 RGB; arguments and errors as `read`."""
        return self.read(limits).pixels


def image_by_id(image_id: str) -> IdentifiedImage:
    """Returns an image of which only the id is given.

    Raises:
        InvalidRequest: the id is malformed.
    """
    if not isinstance(image_id, str) or not IMAGE_ID.fullmatch(image_id):
        raise InvalidRequest("image_id: must be the 64 hexadecimal digits of a SHA-256, as X-Image-Id has them")
    return IdentifiedImage(image_id, None)


def is_isolated(image: ImageInput | BinaryIO) -> bool:
    """Returns whether an image is a file that is decoded in a process of its own; reads its first bytes.

    Of what is no file, or of a kind that is not read, `identify` tells what is wrong, without such a process.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return reader.is_isolated(io.BytesIO(image))
    return isinstance(image, io.IOBase) and reader.is_isolated(cast(BinaryIO, image))


def identify(
    image: ImageInput | BinaryIO,
    limits: Limits,
    answer: AnswerSize | None = None,
    options: PictureOptions | None = None,
    deadline: Deadline | None = None,
) -> IdentifiedImage:
    """Computes an image's image_id and checks its size, without decoding the file.

    Args:
        image: an image file or its bytes, a PIL image of any mode, or an array of any numeric type, `H×W` or `H×W×C`,
            whose channels are bands. EXIF orientation is applied to all but arrays.
        limits: the largest file and image that are accepted.
        answer: the size of the answer and its limit; None skips this check.
        options: how the image is read; None is the defaults.
        deadline: when decoders in processes of their own must have answered; None is their own limit.

    Raises:
        InvalidImage: the image cannot be read, or the array is none of a picture.
        InvalidRequest: there is no such page, or in an array no such band.
        TooLarge: the image has too many bytes or pixels, or the answer too many numbers.
        Unavailable: the decoders are busy, or the deadline has passed.
    """
    options = DEFAULT if options is None else options
    if not isinstance(options, PictureOptions):
        raise InvalidRequest(f"options: must be PictureOptions, is {type(options).__name__}")
    if isinstance(image, np.ndarray):
        return _from_raster(lambda: _raster_of_array(image, options), _array_size(image), limits, answer, options)
    if isinstance(image, Image.Image):
        return _from_raster(lambda: _raster_of_image(image, options), image.size, limits, answer, options)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _from_file(bytes(image), limits, answer, options, deadline)
    if isinstance(image, io.IOBase):
        return _from_file(cast(BinaryIO, image), limits, answer, options, deadline)
    raise InvalidImage(f"image: must be bytes, a PIL image or a numpy array, is {type(image).__name__}")


def _from_raster(
    make: Callable[[], Raster],
    size: tuple[int, int],
    limits: Limits,
    answer: AnswerSize | None,
    options: PictureOptions,
) -> IdentifiedImage:
    """Names the pixels that a caller gave; `make` is called once their size, width and height, is known to be right."""
    check_page(options.page_number(), 1)
    _check_size(size, limits, answer)
    picture = show(make(), options)
    digest = hashlib.sha256(f"RGB {picture.pixels.shape}".encode())
    digest.update(picture.pixels.data)
    return IdentifiedImage(digest.hexdigest(), picture, options=options)


def _array_size(array: NDArray[Any]) -> tuple[int, int]:
    """Returns the width and height of an array.

    Raises:
        InvalidImage: it is no picture.
    """
    shape = "×".join(map(str, array.shape))
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "biufc":
        raise InvalidImage(f"image: an array must be H×W or H×W×C, of numbers, is {shape or 'one'} {array.dtype}")
    height, width = array.shape[:2]
    if array.ndim == 3 and height <= CHANNELS_FIRST_ROWS and array.shape[2] >= CHANNELS_FIRST_COLUMNS:
        raise InvalidImage(f"image: an array must be H×W×C, is {shape}; if its channels come first, transpose it")
    return width, height


def _raster_of_array(array: NDArray[Any], options: PictureOptions) -> Raster:
    channels = array.shape[2] if array.ndim == 3 else 1
    description = f"an array of {bands_text(channels, array.dtype)}"
    samples = array.reshape(*array.shape[:2], channels)
    if options.bands is None and channels not in (1, 3):
        samples = samples[:, :, choose_bands(None, channels, description)]
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        samples = samples.astype(np.float64)
    samples = np.ascontiguousarray(samples, samples.dtype.newbyteorder("="))
    return Raster(samples, description=description)


def _raster_of_image(image: Image.Image, options: PictureOptions) -> Raster:
    with decoding("a PIL image"):
        return raster_by_info(image, options.background)


def _from_file(
    source: bytes | BinaryIO,
    limits: Limits,
    answer: AnswerSize | None,
    options: PictureOptions,
    deadline: Deadline | None,
) -> IdentifiedImage:
    file = _file_of(source)
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise InvalidImage("image: the file is empty")
    if size > limits.max_image_bytes:
        raise TooLarge(f"image: has {size} bytes, more than the {limits.max_image_bytes} that are accepted")
    facts = reader.inspect(file, options, limits.max_pixels, _seconds_left(deadline))
    _check_size((facts.width, facts.height), limits, answer)
    file.seek(0)
    image_id = hashlib.file_digest(cast(io.BytesIO, file), "sha256").hexdigest()
    if text := options.text():
        image_id = hashlib.sha256(f"{image_id}?{text}".encode()).hexdigest()
    decoded_bytes = 3 * facts.width * facts.height
    return IdentifiedImage(
        image_id,
        source,
        decoded_bytes,
        options=options,
        is_deep=facts.is_deep,
        kind=facts.kind,
        place=facts.place,
    )


def _seconds_left(deadline: Deadline | None) -> float | None:
    if deadline is None:
        return None
    left_s = deadline.remaining()
    if not left_s:
        # Whoever waited for the picture has gone; it may have waited for a thread for long.
        raise DeadlineExceeded("the request's deadline passed before its image was read")
    return left_s


def _file_of(source: bytes | BinaryIO) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _check_size(size: tuple[int, int], limits: Limits, answer: AnswerSize | None) -> None:
    width, height = size
    check_size(width, height, limits.max_pixels)
    if answer is not None:
        answer.check((height, width))
