"""Writes the labels of an image for training YOLO's segmentation: a line for each object, `class x1 y1 x2 y2 …`.

Coordinates are from 0 to 1, and run through the centres of pixels: ultralytics fills a polygon together with the
pixels on its line. A line holds one ring, so holes are reached by bridges, and the regions of a mask are joined by
the shortest ones; such a bridge between regions becomes a line of one pixel.
"""

from deployments.encoding.objects import objects_of, tolerance_of
from deployments.encoding.rings import Ring, centre_rings, single_ring
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part

CLASS = 0


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """The lines of a part's objects."""
    height, width = part.masks.image_size
    tolerance = tolerance_of(answer_format)
    lines = (_line(single_ring(centre_rings(one.mask, tolerance)) / (width, height)) for one in objects_of(part))
    return "".join(lines).encode()


def _line(ring: Ring) -> str:
    return f"{CLASS} {' '.join(f'{number:.6f}' for number in ring.reshape(-1).tolist())}\n"
