"""Writes masks as a GeoTIFF, which lies on the map where the picture does."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from deployments.encoding.napari import labels_of
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part

TILE = 256
"""Width and height of a tile in pixels."""

# Level 1 compresses masks nearly as well as higher levels, at several times their speed.
LEVEL = 1


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """The file: a band of 0 and 255 for each object of a prompt, or everything as one band of labels.

    Tiled, with deflate; no value means no data.
    """
    masks = part.masks
    place = answer_format.georeference
    assert place is not None
    is_labels = masks.shown(None) is None
    height, width = masks.image_size
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=width,
            height=height,
            count=1 if is_labels else masks.num_masks,
            dtype="uint16" if is_labels else "uint8",
            crs=CRS.from_user_input(place.crs),
            transform=Affine(*place.transform),
            compress="deflate",
            zlevel=LEVEL,
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            interleave="band",
            photometric="minisblack",
        ) as file:
            for number, band in enumerate(iter([labels_of(part)]) if is_labels else _bands(part), 1):
                file.write(band, number)
                if not is_labels:
                    file.set_band_description(number, f"object {part.first_object + number}")
                    file.update_tags(number, score=masks.score(number - 1))
        return bytes(memory.getbuffer())


def _bands(part: Part) -> Iterator[NDArray[Any]]:
    """Yields one mask at a time, as 0 and 255."""
    for index in range(part.masks.num_masks):
        yield part.masks.mask(index).view(np.uint8) * np.uint8(255)
