"""Reads PNGs of 16 bits a sample, of which Pillow keeps the high byte only; by libpng, with imagecodecs."""

from typing import BinaryIO

import imagecodecs
import numpy as np

from deployments.errors import InvalidImage
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import png_chunks
from deployments.pictures.exif import orientation, upright_samples, upright_size
from deployments.pictures.faults import check_page, decoding
from deployments.pictures.raster import Raster

# Of the first chunk, which every PNG begins with.
HEADER, WIDTH, HEIGHT, DEPTH, COLOUR_TYPE = slice(12, 16), slice(16, 20), slice(20, 24), 24, 25

COLOUR_TYPES = {0, 2, 4, 6}
"""Of 16 bits: grey, colours, and both with alpha."""


def matches(head: bytes) -> bool:
    """Whether the file is a PNG of 16 bits, by its first bytes."""
    return (
        head.startswith(png_chunks.SIGNATURE)
        and head[HEADER] == b"IHDR"
        and len(head) > COLOUR_TYPE
        and head[DEPTH] == 16
    )


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns the upright picture's width and height, from the file's header.

    Raises:
        InvalidImage: its colour type does not exist.
        InvalidRequest: it is asked for another page than 0.
    """
    check_page(options.page_number(), 1)
    file.seek(0)
    head = file.read(COLOUR_TYPE + 1)
    if head[COLOUR_TYPE] not in COLOUR_TYPES:
        raise InvalidImage("image: is a damaged PNG file: its colour type does not exist")
    width, height = int.from_bytes(head[WIDTH], "big"), int.from_bytes(head[HEIGHT], "big")
    return upright_size((width, height), _orientation(file))


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes the file to `H×W×C` uint16.

    Raises:
        InvalidImage: the file is damaged or truncated.
        InvalidRequest: as `size` does.
    """
    size(file, options)
    file.seek(0)
    with decoding("a PNG file"):
        samples = imagecodecs.png_decode(file.read())
        if samples.dtype != np.uint16:
            raise InvalidImage(f"image: is a damaged PNG file: it decodes to {samples.dtype}")
    samples = samples.reshape(*samples.shape[:2], -1)
    return Raster(
        upright_samples(samples, _orientation(file)), description=f"PNG, {samples.shape[2]} channels of uint16"
    )


def is_deep(*_: object) -> bool:
    """Returns that the samples have more than 8 bits."""
    return True


def _orientation(file: BinaryIO) -> int:
    """Returns EXIF's orientation; 1 if there is none, or none that can be read."""
    return orientation(png_chunks.without_metadata(file).exif)
