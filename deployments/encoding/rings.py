"""Masks as single rings, for tools whose polygons have no holes: a bridge, there and back on one line, reaches each.

A ring bounds a region by the even-odd and by the nonzero rule: holes run the other way than the outside. Tools read
rings in two ways, so there are two kinds. Rings of edges run along the edges of pixels, for tools that fill what is
inside. Rings of centres run through the centres of the border's pixels, for tools that fill what is inside and the
pixels on the line (OpenCV's fillPoly, Pillow's polygon). In both kinds the pixel in column x and row y is the square
from (x, y) to (x + 1, y + 1). Its centre is (x + ½, y + ½), where the latter tools find it by rounding down.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deployments.encoding.bridges import bridged
from deployments.encoding.contours import LOSS_PER_PIXEL, TRIES, contours
from deployments.encoding.records import bbox
from deployments.encoding.ring_set import Ring, RingSet


def edge_rings(mask: NDArray[np.bool_], tolerance: float) -> list[Ring]:
    """Returns a ring of edges for each region of a mask; see `contours` for the arguments."""
    return bridged(RingSet.of_polygons(contours(mask, tolerance))).rings()


def centre_rings(mask: NDArray[np.bool_], tolerance: float) -> RingSet:
    """Returns a ring of centres for each region of a mask.

    A region of one or two pixels has repeated corners, so that each ring has three at least. What the rings may lose by
    the tolerance is the same as for `contours`, counted as these tools draw.

    Args:
        mask: `H×W` bool.
        tolerance: how far, in pixels, a simplified contour may be from the mask's own; 0 for exact contours.
    """
    exact = _centres(RingSet.of_polygons(contours(mask, 0)))
    for attempt in range(TRIES if len(exact) and tolerance > 0 else 0):
        candidate = _joined(exact.simplified(tolerance / 2**attempt))
        if _iou_as_drawn(candidate.rings(), mask) >= 1 - LOSS_PER_PIXEL * tolerance:
            return candidate
    return _joined(exact)


def _joined(rings: RingSet) -> RingSet:
    return bridged(rings).without_straight().padded()


# ---- centres of the border's pixels


def _centres(edges: RingSet) -> RingSet:
    """Returns the centres of the pixels along rings of edges, on their left, where the mask is."""
    begins, ends = edges.corners, edges.corners[edges.after]
    direction = np.sign(ends - begins)
    to_the_left = direction[:, ::-1] * (-0.5, 0.5)
    # The first and the last pixel along each edge: between them, the way is straight.
    centres = np.stack([begins + direction / 2 + to_the_left, ends - direction / 2 + to_the_left], axis=1)
    return RingSet(centres.reshape(-1, 2), 2 * edges.sizes, edges.region).without_straight()


def _iou_as_drawn(rings: list[Ring], mask: NDArray[np.bool_]) -> float:
    left, top, width, height = bbox(mask)
    box = mask[top : top + height, left : left + width]
    image = Image.new("1", (width, height))
    canvas = ImageDraw.Draw(image)
    for ring in rings:
        canvas.polygon([tuple(corner) for corner in (ring - (left, top)).tolist()], fill=1, outline=1)
    drawn = np.asarray(image)
    return float((drawn & box).sum() / (drawn | box).sum())
