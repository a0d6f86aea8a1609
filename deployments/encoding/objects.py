"""What the formats of annotation tools share: the objects of an answer, runs of pixels, JSON, files of images."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from deployments.encoding.records import bbox
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part


@dataclass(frozen=True, eq=False)
class MaskedObject:
    """An object with its only mask.

    Attributes:
        number: the object's place in the answer, counted from 1.
        mask: `H×W` bool, not empty.
        score: the mask's estimated IoU.
    """

    number: int
    mask: NDArray[np.bool_]
    score: float

    @property
    def bbox(self) -> list[int]:
        """`[x, y, width, height]` in pixels."""
        return bbox(self.mask)

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    def digest(self, image_id: str) -> str:
        """Returns hexadecimal digits: the same for the same mask of the same image at the same place in an answer."""
        return hashlib.sha256(f"{image_id} {self.number} ".encode() + np.packbits(self.mask).tobytes()).hexdigest()

    @property
    def crop(self) -> NDArray[np.bool_]:
        """The mask within its box, `h×w` bool."""
        left, top, width, height = self.bbox
        return self.mask[top : top + height, left : left + width]


def objects_of(part: Part) -> Iterator[MaskedObject]:
    """Yields a part's objects, one mask in memory at a time; objects with an empty mask are left out.

    Args:
        part: its masks are one for each object.
    """
    for index in range(part.masks.num_masks):
        mask = part.masks.mask(index)
        if mask.any():
            yield MaskedObject(part.first_object + index + 1, mask, part.masks.score(index))


def tolerance_of(answer_format: AnswerFormat) -> float:
    """The tolerance that tools' polygons are simplified by, in pixels: none if none was asked for."""
    return answer_format.tolerance or 0.0


def runs_of(pixels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the lengths of a mask's runs, row by row. The first is of background, and 0 if the mask begins at once.

    Args:
        pixels: `h×w` bool, of one pixel at least.
    """
    flat = pixels.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    begins = [0, 0] if flat[0] else [0]
    return np.diff(np.concatenate([begins, changes, [flat.size]]))


def json_text(document: Any) -> bytes:
    """Writes a JSON document, which may hold numpy's arrays."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def image_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Writes an image's file.

    Args:
        image: the image.
        kind: Pillow's name of the format.
        options: see `Image.save`.
    """
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
