"""Reads the pictures that Pillow reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from deployments.errors import InvalidImage
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.faults import check_page, decoding
from deployments.pictures.pil_image import orientation_of, raster_formats, raster_of
from deployments.pictures.raster import Raster
from deployments.pictures.turns import QUARTER_TURNS


def matches(_: bytes) -> bool:
    """Whether this reader may read the file; of some formats Pillow knows no signature."""
    return True


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns the upright picture's width and height, from the file's header.

    Raises:
        InvalidImage: the file is damaged, or of a kind that is not read.
        InvalidRequest: the file has no such page.
        TooLarge: Pillow's guard against huge images stopped it.
    """
    with _opened(file) as image:
        if page := options.page_number():
            check_page(page, getattr(image, "n_frames", 1))
        width, height = image.size
        return (height, width) if orientation_of(image) in QUARTER_TURNS else (width, height)


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes the file.

    Raises:
        InvalidImage, InvalidRequest, TooLarge: as `size` does; also if pixels are missing.
    """
    with _opened(file) as image:
        if page := options.page_number():
            check_page(page, getattr(image, "n_frames", 1))
        return raster_of(image, options.background, options.page_number())


def is_deep(file: BinaryIO, _: PictureOptions) -> bool:
    """Returns whether the file's samples have more than 8 bits, from its header; errors as `size`."""
    with _opened(file) as image:
        return image.mode.startswith("I") or image.mode == "F"


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    file.seek(0)
    try:
        with decoding("a file"), Image.open(file, formats=raster_formats()) as image:
            yield image
    except UnidentifiedImageError as error:
        raise InvalidImage("image: is not an image in a format that can be read") from error
