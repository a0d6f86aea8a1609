"""Reads PGM and PPM of more than 8 bits a sample, of which Pillow keeps 8 bits or changes the scale."""

import re
from typing import BinaryIO

import numpy as np

from deployments.errors import InvalidImage
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.faults import check_page, decoding
from deployments.pictures.raster import Raster

# Kind, width, height and highest value; blanks and comments lie between, one blank before the samples.
GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
HEADER = re.compile(rb"P([2356])" + GAP + rb"(\d{1,9})" + GAP + rb"(\d{1,9})" + GAP + rb"(\d{1,6})(?:#[^\r\n]*)?\s")

HEAD_BYTES = 4096


def matches(head: bytes) -> bool:
    """Whether the file is a PGM or PPM of more than 8 bits, by its first bytes."""
    found = HEADER.match(head[:HEAD_BYTES])
    return found is not None and int(found[4]) > 255


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns the width and the height.

    Raises:
        InvalidImage: the header is damaged.
        InvalidRequest: another page than 0 is asked for.
    """
    check_page(options.page_number(), 1)
    _, width, height, highest, _ = _header(file)
    if highest > 65_535:
        raise InvalidImage(f"image: is a PGM or PPM file whose highest value is {highest}, more than 65535")
    return width, height


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes the file to `H×W×1` or `H×W×3` uint16; errors as `size`, and InvalidImage if samples are missing."""
    size(file, options)
    kind, width, height, highest, start = _header(file)
    channels = 1 if kind in (2, 5) else 3
    count = width * height * channels
    file.seek(start)
    with decoding("a PGM or PPM file"):
        if kind in (5, 6):
            samples = np.frombuffer(file.read(2 * count), ">u2", count).astype(np.uint16)
        else:
            samples = np.array(file.read().split()[:count], np.uint16)
        samples = samples.reshape(height, width, channels)
    return Raster(samples, description=f"PNM, {channels} channels of uint16", full=(0.0, float(highest)))


def is_deep(*_: object) -> bool:
    """Returns that the samples have more than 8 bits."""
    return True


def _header(file: BinaryIO) -> tuple[int, int, int, int, int]:
    """Returns the kind, the width, the height, the highest value, and where the samples begin."""
    file.seek(0)
    found = HEADER.match(file.read(HEAD_BYTES))
    if found is None:
        raise InvalidImage("image: is a damaged PGM or PPM file")
    kind, width, height, highest = (int(found[at]) for at in range(1, 5))
    return kind, width, height, highest, found.end()
