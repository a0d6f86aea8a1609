"""Writes masks as PNG images, with Pillow."""

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part

# Level 1 compresses masks nearly as well as higher levels, at several times their speed.
COMPRESS_LEVEL = 1


def write(part: Part, _: AnswerFormat) -> bytes:
    """The image of an answer: one mask of a prompt, or everything as labels."""
    masks = part.masks
    if masks.shown(None) is None:
        return encode_labels(map(masks.mask, range(masks.num_masks)), masks.image_size)
    return encode(masks.mask(0))


def encode(mask: NDArray[np.bool_]) -> bytes:
    """Writes one `H×W` bool mask as 8-bit grey: 0 and 255."""
    return _png(Image.fromarray(mask.view(np.uint8) * np.uint8(255)))


def encode_labels(masks: Iterable[NDArray[np.bool_]], size: tuple[int, int]) -> bytes:
    """Writes many masks as one grey label image: 0 where no mask is, n where the n-th mask is, counted from 1.

    Where masks overlap, the smaller one is on top, so that parts are visible on their wholes. The image has 8 bits, or
    16 for more than 255 masks.

    Args:
        masks: `H×W` bool each, at most 65,535 of them.
        size: height and width of the image in pixels.
    """
    labels = np.zeros(size, np.uint16)
    areas = np.full(size, np.iinfo(np.uint32).max, np.uint32)
    count = 0
    for count, mask in enumerate(masks, 1):
        area = int(mask.sum())
        on_top = mask & (area < areas)
        labels[on_top] = count
        areas[on_top] = area
    return _png(Image.fromarray(labels if count > 255 else labels.astype(np.uint8)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()
