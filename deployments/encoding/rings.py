"""Masks as single rings, for tools whose polygons have no holes: a bridge, there and back on one line, reaches each.

A ring bounds a region by the even-odd and by the nonzero rule: holes run the other way than the outside. Tools read
rings in two ways, so there are two kinds. Rings of edges run along the edges of pixels, for tools that fill what is
inside. Rings of centres run through the centres of the border's pixels, for tools that fill what is inside and the
pixels on the line (OpenCV's fillPoly, Pillow's polygon). In both kinds the pixel in column x and row y is the square
from (x, y) to (x + 1, y + 1). Its centre is (x + ½, y + ½), where the latter tools find it by rounding down.
"""

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deployments.encoding.bridges import FEWEST_CORNERS, Ring, bridged, distinct, padded
from deployments.encoding.contours import LOSS_PER_PIXEL, TRIES, contours, rings_of
from deployments.encoding.records import bbox


def edge_rings(mask: NDArray[np.bool_], tolerance: float) -> list[Ring]:
    """Returns a ring of edges for each region of a mask; see `contours` for the arguments."""
    return [bridged([ring[:-1] for ring in rings_of(polygon)]) for polygon in contours(mask, tolerance)]


def centre_rings(mask: NDArray[np.bool_], tolerance: float) -> list[Ring]:
    """Returns a ring of centres for each region of a mask.

    A region of one or two pixels has repeated corners, so that each ring has three at least. What the rings may lose by
    the tolerance is the same as for `contours`, counted as these tools draw.

    Args:
        mask: `H×W` bool.
        tolerance: how far, in pixels, a simplified contour may be from the mask's own; 0 for exact contours.
    """
    regions = [[_centres(ring) for ring in rings_of(polygon)] for polygon in contours(mask, 0)]
    for attempt in range(TRIES if regions and tolerance > 0 else 0):
        candidate = [_joined([_simplified(ring, tolerance / 2**attempt) for ring in rings]) for rings in regions]
        if _iou_as_drawn(candidate, mask) >= 1 - LOSS_PER_PIXEL * tolerance:
            return candidate
    return [_joined(rings) for rings in regions]


def _joined(rings: list[Ring]) -> Ring:
    return padded(_corners(bridged(rings)))


# ---- centres of the border's pixels


def _centres(ring: Ring) -> Ring:
    """Returns the centres of the pixels along a closed ring of edges, on its left, where the mask is."""
    steps = np.diff(ring, axis=0)
    lengths = np.abs(steps).sum(axis=1).astype(int)
    directions = np.repeat(np.sign(steps), lengths, axis=0)
    along = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5
    to_the_left = directions[:, ::-1] * (-0.5, 0.5)
    return _corners(distinct(np.repeat(ring[:-1], lengths, axis=0) + directions * along[:, None] + to_the_left))


def _corners(ring: Ring) -> Ring:
    """Removes the corners at which a ring goes straight on; where it turns back, the corner stays."""
    ring = distinct(ring)
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    straight = (before[:, 0] * after[:, 1] == before[:, 1] * after[:, 0]) & ((before * after).sum(axis=1) > 0)
    corners: Ring = ring[~straight]
    return corners


def _simplified(ring: Ring, tolerance: float) -> Ring:
    if len(ring) <= FEWEST_CORNERS:
        return ring
    closed = shapely.linestrings(np.concatenate([ring, ring[:1]]))
    kept: Ring = shapely.get_coordinates(shapely.simplify(closed, tolerance, preserve_topology=False))
    return kept[:-1]


def _iou_as_drawn(rings: list[Ring], mask: NDArray[np.bool_]) -> float:
    left, top, width, height = bbox(mask)
    box = mask[top : top + height, left : left + width]
    image = Image.new("1", (width, height))
    canvas = ImageDraw.Draw(image)
    for ring in rings:
        canvas.polygon([tuple(corner) for corner in (ring - (left, top)).tolist()], fill=1, outline=1)
    drawn = np.asarray(image)
    return float((drawn & box).sum() / (drawn | box).sum())
