"""What is done with a file whose reader is known: its facts, and its picture as a model sees it."""

import math
from dataclasses import replace
from typing import BinaryIO, Protocol

from deployments.errors import InvalidImage, TooLarge
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.faults import decoding
from deployments.pictures.raster import Picture, Raster, choose_bands
from deployments.pictures.window import shown


class ReaderModule(Protocol):
    """A module that reads some kinds of file. `file` can seek, and may stand anywhere."""

    __name__: str

    def matches(self, head: bytes, /) -> bool:
        """Whether this reader reads the file, by its first bytes."""

    def size(self, file: BinaryIO, options: PictureOptions, /) -> tuple[int, int]:
        """Returns the upright picture's width and height, without decoding it."""

    def read(self, file: BinaryIO, options: PictureOptions, /) -> Raster:
        """Decodes the picture."""

    def is_deep(self, file: BinaryIO, options: PictureOptions, /) -> bool:
        """Returns whether samples may have other types than 8 bits, so that a window is chosen for them."""


def facts_of(reader: ReaderModule, file: BinaryIO, options: PictureOptions, max_pixels: int) -> tuple[int, int, bool]:
    """Returns a picture's width and height, and whether its samples may have more than 8 bits; decodes nothing.

    Args:
        reader: reads files of this kind.
        file: can seek.
        options: which page is meant.
        max_pixels: the most pixels that are accepted.

    Raises:
        InvalidImage, InvalidRequest, TooLarge: as `reader.inspect`.
    """
    with decoding("a file"):
        width, height = reader.size(file, options)
        check_size(width, height, max_pixels)
        return width, height, reader.is_deep(file, options)


def picture_of(reader: ReaderModule, file: BinaryIO, options: PictureOptions, max_pixels: int) -> Picture:
    """Decodes a picture; arguments and errors as `reader.read`."""
    with decoding("a file"):
        check_size(*reader.size(file, options), max_pixels)
        raster = reader.read(file, options)
        height, width, _ = raster.samples.shape
        # Of some kinds the header's size is not the decoder's.
        check_size(width, height, max_pixels)
        return show(raster, options)


def show(raster: Raster, options: PictureOptions) -> Picture:
    """Returns a raster as 8-bit RGB.

    Args:
        raster: the samples.
        options: how they are shown.

    Raises:
        InvalidImage: the samples are complex numbers.
        InvalidRequest: there is no such band.
    """
    if raster.samples.dtype.kind not in "biuf":
        raise InvalidImage(f"image: is {raster.description}; only real numbers are a picture")
    count = raster.samples.shape[2]
    if options.bands is not None and not raster.is_chosen:
        chosen = choose_bands(options.bands, count, raster.description)
        raster = replace(raster, samples=raster.samples[:, :, chosen])
    elif count == 2:
        raster = replace(raster, samples=raster.samples[:, :, [0, 0, 0, 1]])
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
