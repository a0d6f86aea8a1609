"""Writes the labels of an image for training YOLO's segmentation: a line for each object, `class x1 y1 x2 y2 …`.

Coordinates are from 0 to 1, and run through the border's pixels: loaders fill a polygon together with the pixels on its
line. They find the pixel of a corner by rounding down (ultralytics) or to the nearest (supervision). A line holds one
ring, so holes are reached by bridges, and the regions of a mask are joined by the shortest ones; such a bridge between
regions becomes a line of one pixel.
"""

import numpy as np

from deployments.encoding.bridges import single_ring
from deployments.encoding.objects import objects_of, tolerance_of
from deployments.encoding.ring_set import Ring
from deployments.encoding.rings import centre_rings
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part

CLASS = 0

DECIMALS = 6

PLACE_IN_PIXEL = 0.25
"""Where corners lie in their pixels, in both directions. Both ways of rounding find the pixel from there; from its
centre, the latter finds one of four pixels, by the digits that float32 cuts off."""


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """The lines of a part's objects."""
    height, width = part.masks.image_size
    tolerance = tolerance_of(answer_format)
    rings = (single_ring(centre_rings(one.mask, tolerance)) - 0.5 + PLACE_IN_PIXEL for one in objects_of(part))
    return b"".join(_line(ring / (width, height)) for ring in rings)


def _line(ring: Ring) -> bytes:
    """Writes an object's line: a million numbers take a twentieth of a second, and formatted one by one, a second."""
    parts = np.rint(ring.reshape(-1) * 10**DECIMALS).astype(np.int64)
    digits = parts[:, None] // 10 ** np.arange(DECIMALS, -1, -1) % 10
    text = np.full((len(parts), DECIMALS + 3), ord(" "), np.uint8)
    text[:, 1] = ord("0") + digits[:, 0]
    text[:, 2] = ord(".")
    text[:, 3:] = ord("0") + digits[:, 1:]
    return str(CLASS).encode() + text.tobytes() + b"\n"
