"""Reads a picture from a file of any kind: finds out the kind by the first bytes, checks the size, then decodes it."""

import math
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

from PIL import Image

from deployments.errors import InvalidImage, InvalidRequest, TooLarge
from deployments.messages.georeference import Georeference, NoGeoreference
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import (
    camera_raw,
    deep_jpeg,
    dicom,
    geotiff,
    heif,
    jxl,
    kinds,
    netpbm,
    pillow_reader,
    png16,
    rarer_pillow_reader,
    tiff,
)
from deployments.pictures.faults import decoding
from deployments.pictures.isolated import IsolatedReader
from deployments.pictures.raster import Picture, Raster, choose_bands
from deployments.pictures.window import shown

HEAD_BYTES = 65_536
"""How much of a file the readers see to know it."""


class PictureReader(Protocol):
    """A module that reads some kinds of file. `file` can seek, and may stand anywhere."""

    def matches(self, head: bytes, /) -> bool:
        """Whether this reader reads the file, by its first bytes."""

    def size(self, file: BinaryIO, options: PictureOptions, /) -> tuple[int, int]:
        """Returns the upright picture's width and height, without decoding it."""

    def read(self, file: BinaryIO, options: PictureOptions, /) -> Raster:
        """Decodes the picture."""

    def is_deep(self, file: BinaryIO, options: PictureOptions, /) -> bool:
        """Returns whether samples may have other types than 8 bits, so that a window is chosen for them."""


TIFF = IsolatedReader(tiff, "a TIFF file")

READERS: dict[str, PictureReader] = {
    "raw": IsolatedReader(camera_raw, "a camera raw file"),
    "tiff": TIFF,
    "png16": png16,
    "netpbm": netpbm,
    "dicom": IsolatedReader(dicom, "a DICOM file"),
    "heif": IsolatedReader(heif, "a HEIC or AVIF picture"),
    "jxl": IsolatedReader(jxl, "a JPEG XL picture"),
    "deep_jpeg": IsolatedReader(deep_jpeg, deep_jpeg.KIND),
    "pillow": pillow_reader,
    "rarer": IsolatedReader(rarer_pillow_reader, "a picture"),
}
"""In the order in which they are asked: camera raw files are TIFF files too."""

ALL_BANDS = {"tiff"}
"""Readers that choose `bands` themselves."""


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture before it is decoded.

    Attributes:
        kind: the name of its reader.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
        is_deep: whether its samples may have more than 8 bits.
    """

    kind: str
    width: int
    height: int
    is_deep: bool


def inspect(file: BinaryIO, options: PictureOptions, max_pixels: int) -> PictureFacts:
    """Reads a picture's header.

    Args:
        file: can seek.
        options: which page is meant.
        max_pixels: the most pixels that are accepted.

    Raises:
        InvalidImage: the file is damaged, or of a kind that is not read.
        InvalidRequest: it has no such page.
        TooLarge: it has too many pixels.
    """
    kind, reader = _reader_of(file, max_pixels)
    with decoding("a file"):
        width, height = reader.size(file, options)
        check_size(width, height, max_pixels)
        return PictureFacts(kind, width, height, reader.is_deep(file, options))


def read(file: BinaryIO, options: PictureOptions, max_pixels: int) -> Picture:
    """Decodes a picture.

    Args:
        file: can seek.
        options: the page, the bands, and how they are shown.
        max_pixels: the most pixels that are accepted.

    Raises:
        InvalidImage: the file is damaged or truncated, or of a kind that is not read.
        InvalidRequest: it has no such page or band.
        TooLarge: it has too many pixels, or there is not enough memory for them.
    """
    kind, reader = _reader_of(file, max_pixels)
    with decoding("a file"):
        check_size(*reader.size(file, options), max_pixels)
        raster = reader.read(file, options)
        height, width, _ = raster.samples.shape
        check_size(width, height, max_pixels)
        return show(raster, options, choose=kind not in ALL_BANDS)


def georeference(file: BinaryIO, options: PictureOptions) -> Georeference | NoGeoreference:
    """Returns where a TIFF file's page lies on a map.

    Args:
        file: can seek; its kind is `tiff`.
        options: which page is meant.

    Raises:
        Overloaded: no helper became free in time.
    """
    try:
        return TIFF.run(geotiff.georeference, file, options)
    except (InvalidImage, InvalidRequest, TooLarge) as error:
        # Pictures are shown whatever is wrong with their places.
        return NoGeoreference(f"its georeference cannot be read: {error}")


def show(raster: Raster, options: PictureOptions, choose: bool = True) -> Picture:
    """Returns a raster as 8-bit RGB.

    Args:
        raster: the samples.
        options: how they are shown.
        choose: whether `bands` are still to be chosen.

    Raises:
        InvalidImage: the samples are complex numbers.
        InvalidRequest: there is no such band.
    """
    if raster.samples.dtype.kind not in "biuf":
        raise InvalidImage(f"image: is {raster.description}; only real numbers are a picture")
    if choose and options.bands is not None:
        chosen = choose_bands(options.bands, raster.samples.shape[2], raster.description)
        raster = replace(raster, samples=raster.samples[:, :, chosen])
    return shown(raster, options.window, options.background)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Rejects a picture that is empty or too large.

    Raises:
        InvalidImage: it has no pixels.
        TooLarge: it has too many.
    """
    if width < 1 or height < 1:
        raise InvalidImage(f"image: is {width}×{height} pixels")
    pixels = math.prod((width, height))
    if pixels > max_pixels:
        raise TooLarge(f"image: has {width}×{height} = {pixels} pixels, more than the {max_pixels} accepted")


def _reader_of(file: BinaryIO, max_pixels: int) -> tuple[str, PictureReader]:
    # An image inside an icon file is decoded while the file is opened: the only guard against its size is Pillow's own.
    Image.MAX_IMAGE_PIXELS = max_pixels
    file.seek(0)
    head = file.read(HEAD_BYTES)
    for kind, reader in READERS.items():
        if reader.matches(head):
            return kind, reader
    raise kinds.refusal(head)
