"""Traces the outlines of a mask's regions along the edges of pixels, all corners at a time.

The pixel in column x and row y is the square from (x, y) to (x + 1, y + 1).
"""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

# What the four pixels around a vertex are, those of the mask counted: north-west, north-east, south-west, south-east.
NW, NE, SW, SE = 1, 2, 4, 8

LEFT, RIGHT, UP, DOWN = 0, 1, 0, 1

# For each kind of vertex at which a ring turns, by the sum of its mask pixels: on which side its horizontal and its
# vertical edge lie, and whether the ring leaves by the horizontal one. The mask is on the left of the way, as seen with
# y upwards.
TURNS = {
    SE: (RIGHT, DOWN, True),
    SW: (LEFT, DOWN, False),
    NW: (LEFT, UP, True),
    NE: (RIGHT, UP, False),
    NW + NE + SW: (RIGHT, DOWN, False),
    NW + NE + SE: (LEFT, DOWN, True),
    NE + SW + SE: (LEFT, UP, False),
    NW + SW + SE: (RIGHT, UP, True),
}

# Where two pixels touch only at a corner, two rings turn, or one that comes by twice. Around pixels of two regions each
# stays with its own pixel. Those of one region are crossed over: a ring that stayed would touch itself there.
APART = {NW + SE: ((LEFT, UP, True), (RIGHT, DOWN, True)), NE + SW: ((LEFT, DOWN, False), (RIGHT, UP, False))}
TOGETHER = {NW + SE: ((RIGHT, UP, True), (LEFT, DOWN, True)), NE + SW: ((LEFT, UP, False), (RIGHT, DOWN, False))}


def traced(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Returns a polygon for each region of a mask: valid, with disjoint interiors, corners in whole pixels.

    Regions are connected by the sides of pixels; those that touch only at a corner are separate. They are in the order
    of their first pixels, row by row. Outer rings run counterclockwise as seen with y upwards, holes clockwise.

    Args:
        mask: `H×W` bool, not empty.
    """
    labels, _ = ndimage.label(np.pad(mask, 1))
    corners, ring, region = _rings(labels)
    sizes = np.bincount(ring)
    ends = np.cumsum(sizes)
    following = np.arange(1, len(corners) + 1)
    following[ends - 1] = ends - sizes
    x, y = corners.T
    doubled_area = np.add.reduceat(x * y[following] - x[following] * y, ends - sizes)
    # By region, the outer ring, which alone has a positive area, before the holes.
    order = np.lexsort((doubled_area < 0, region))
    rings = shapely.linearrings(corners.astype(float), indices=ring)
    polygons: NDArray[Any] = shapely.polygons(rings[order], indices=region[order] - 1)
    return polygons


def _rings(labels: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Follows all rings.

    Args:
        labels: the number of each pixel's region, from 1, 0 for others; with a border of zeros.

    Returns:
        The rings' corners, `n×2` XY, ring by ring; the number of each corner's ring; the region of each ring.
    """
    x, y, horizontal, vertical, leaves_along_row, region = _turns(labels)
    across = _partners(y, 2 * x + horizontal)
    along = _partners(x, 2 * y + vertical)
    following = np.where(leaves_along_row, across, along).tolist()
    order: list[int] = []
    begins: list[int] = []
    is_left = bytearray(b"\1") * len(following)
    at = is_left.find(1)
    while at >= 0:
        begins.append(len(order))
        while is_left[at]:
            is_left[at] = 0
            order.append(at)
            at = following[at]
        at = is_left.find(1, at)
    way = np.array(order)
    ring = np.zeros(len(way), np.int64)
    ring[begins[1:]] = 1
    return np.stack([x, y], axis=1)[way], np.cumsum(ring), region[way[begins]]


def _turns(labels: NDArray[np.int32]) -> tuple[NDArray[Any], ...]:
    """Returns the places where rings turn: x, y, the sides of their two edges, how they leave, their regions."""
    around = np.stack([labels[:-1, :-1], labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:]])
    kinds = np.zeros(around.shape[1:], np.uint8)
    for bit, pixels in zip((NW, NE, SW, SE), around, strict=True):
        kinds |= np.where(pixels > 0, np.uint8(bit), np.uint8(0))
    # The same region's pixels, or one: crossing over is for those.
    regions = around.max(axis=0)
    found: list[tuple[NDArray[Any], ...]] = []

    def add(where: NDArray[np.bool_], turn: tuple[int, int, bool], region: NDArray[np.int32]) -> None:
        y, x = np.nonzero(where)
        same = np.ones(len(x), np.int64)
        found.append((x, y, turn[0] * same, turn[1] * same, turn[2] * same, region[y, x]))

    for kind, turn in TURNS.items():
        add(kinds == kind, turn, regions)
    for kind, first, second in ((NW + SE, around[0], around[3]), (NE + SW, around[2], around[1])):
        is_one = (kinds == kind) & (first == second)
        is_two = (kinds == kind) & (first != second)
        for turn in TOGETHER[kind]:
            add(is_one, turn, regions)
        for turn, region in zip(APART[kind], (first, second), strict=True):
            add(is_two, turn, region)
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def _partners(line: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the other end of each place's edge on its line: along a line, two and two are ends of one."""
    order = np.lexsort((place, line))
    partner = np.empty_like(order)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    return partner
