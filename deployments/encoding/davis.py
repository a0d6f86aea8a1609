"""Writes label images as DAVIS has them: 8 bits with a palette, in which a pixel is the number of the object there."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.encoding.objects import image_bytes, objects_of
from deployments.encoding.png import COMPRESS_LEVEL
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part


def write(part: Part, _: AnswerFormat) -> bytes:
    """An image of up to 255 objects; where masks overlap, the lower number is on top, as in DAVIS's own tools."""
    labels = np.zeros(part.masks.image_size, np.uint8)
    for one in objects_of(part):
        labels[one.mask & (labels == 0)] = one.number
    return label_image(labels)


def label_image(labels: NDArray[np.uint8]) -> bytes:
    """Writes a PNG of 8 bits with the palette of DAVIS.

    Args:
        labels: `H×W` uint8.
    """
    image = Image.fromarray(labels)
    image.putpalette(davis_palette())
    return image_bytes(image, "PNG", compress_level=COMPRESS_LEVEL)


def davis_palette() -> bytes:
    """Returns the 256 colours by which DAVIS and PASCAL VOC show labels, as 768 bytes of RGB.

    A colour's bits are those of the label: its bit 3k + c is bit 7 − k of channel c.
    """
    labels = np.arange(256)
    channels = [sum(((labels >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8).tobytes()
