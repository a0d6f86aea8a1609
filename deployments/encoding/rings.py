"""Masks as single rings, for tools whose polygons have no holes: a bridge, there and back on one line, reaches each.

A ring bounds a region by the even-odd and by the nonzero rule: holes run the other way than the outside. Tools read
rings in two ways, so there are two kinds. Rings of edges run along the edges of pixels, for tools that fill what is
inside. Rings of centres run through the centres of the border's pixels, for tools that fill what is inside and the
pixels on the line (OpenCV's fillPoly, Pillow's polygon). In both kinds the pixel in column x and row y is the square
from (x, y) to (x + 1, y + 1). Its centre is (x + ½, y + ½), where the latter tools find it by rounding down.
"""

from typing import TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial import Delaunay

from deployments.encoding.contours import LOSS_PER_PIXEL, TRIES, contours, rings_of
from deployments.encoding.records import bbox

Ring: TypeAlias = NDArray[np.float64]
"""`n×2` XY in pixels; the first corner is not repeated."""

FEWEST_CORNERS = 3


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
    ring = _corners(bridged(rings))
    return np.concatenate([ring, np.repeat(ring[-1:], max(0, FEWEST_CORNERS - len(ring)), axis=0)])


# ---- bridges to holes


def bridged(rings: list[Ring]) -> Ring:
    """Joins the holes of a region to its outer ring, each by a bridge straight up from the hole's topmost corner.

    Above a hole is the region itself, up to the first ring that the bridge meets: so no bridge crosses anything.

    Args:
        rings: the outer ring, then those of the holes.
    """
    whole, *holes = rings
    # From the top down: what a bridge meets then belongs to the ring already.
    for hole in sorted(holes, key=lambda ring: float(ring[:, 1].min())):
        top = int(hole[:, 1].argmin())
        turned = np.concatenate([hole[top:], hole[: top + 1]])
        edge, landing = _above(whole, hole[top])
        whole = _distinct(np.concatenate([whole[: edge + 1], [landing], turned, [landing], whole[edge + 1 :]]))
    return whole


def _above(ring: Ring, point: NDArray[np.float64]) -> tuple[int, NDArray[np.float64]]:
    """Finds where a ring is met first on the way up from a point: the edge's index, and the place.

    Of rings that were simplified one by one, a hole may reach out of the outer ring: then it is the nearest corner.
    """
    x, y = point
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    run = x1 - x0
    slanting = y0 + (y1 - y0) * np.divide(x - x0, run, out=np.zeros_like(run), where=run != 0)
    # On an edge that is itself vertical: the point, or the end that is nearest to it.
    upright = np.clip(y, np.minimum(y0, y1), np.maximum(y0, y1))
    met = np.where(run == 0, upright, slanting)
    met[(x < np.minimum(x0, x1)) | (x > np.maximum(x0, x1)) | (met > y)] = -np.inf
    edge = int(met.argmax())
    if met[edge] == -np.inf:
        edge = int(np.hypot(*(ring - point).T).argmin())
        return edge, ring[edge]
    return edge, np.array([x, met[edge]])


def _distinct(ring: Ring) -> Ring:
    """Removes corners that repeat the one before."""
    differs = (ring != np.roll(ring, 1, axis=0)).any(axis=1)
    return ring[differs] if differs.any() else ring[:1]


# ---- centres of the border's pixels


def _centres(ring: Ring) -> Ring:
    """Returns the centres of the pixels along a closed ring of edges, on its left, where the mask is."""
    steps = np.diff(ring, axis=0)
    lengths = np.abs(steps).sum(axis=1).astype(int)
    directions = np.repeat(np.sign(steps), lengths, axis=0)
    along = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5
    to_the_left = directions[:, ::-1] * (-0.5, 0.5)
    return _corners(_distinct(np.repeat(ring[:-1], lengths, axis=0) + directions * along[:, None] + to_the_left))


def _corners(ring: Ring) -> Ring:
    """Removes the corners at which a ring goes straight on; where it turns back, the corner stays."""
    ring = _distinct(ring)
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


# ---- bridges between regions


def single_ring(rings: list[Ring]) -> Ring:
    """Joins the rings of regions to one, by bridges between corners: the shortest that connect all regions.

    Args:
        rings: one or more, which share no corner.
    """
    if len(rings) == 1:
        return rings[0]
    order, bridges = _shortest_bridges(rings)
    rings = list(rings)
    branches: dict[int, list[Ring]] = {region: [] for region in order}
    # The outermost first, so that a region has its own branches before it becomes one.
    for region in reversed(order):
        rings[region] = _with_branches(rings[region], branches.pop(region))
        if region in bridges:
            parent, landing, start = bridges[region]
            turned = np.roll(rings[region], -_place(rings[region], start), axis=0)
            branches[parent].append(np.concatenate([[landing], turned, turned[:1]]))
    return rings[order[0]]


def _place(ring: Ring, corner: NDArray[np.float64]) -> int:
    return int((ring == corner).all(axis=1).argmax())


def _with_branches(ring: Ring, branches: list[Ring]) -> Ring:
    """Inserts branches, each of which begins with the corner of the ring that it leaves from."""
    for branch in branches:
        at = _place(ring, branch[0])
        ring = np.concatenate([ring[:at], branch, ring[at:]])
    return ring


def _shortest_bridges(rings: list[Ring]) -> tuple[list[int], dict[int, tuple[int, Ring, Ring]]]:
    """Finds the minimum spanning tree of regions.

    Its bridges are among the edges of the corners' Delaunay triangulation, as are those of every shortest tree.

    Returns:
        The regions in an order in which each comes after its parent; and for each but the first its parent, the
        parent's corner and its own corner of their bridge.
    """
    corners, first = np.unique(np.concatenate(rings), axis=0, return_index=True)
    region = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])[first]
    triangles = Delaunay(np.concatenate([corners, _far_around(corners)])).simplices
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    pairs = pairs[(pairs < len(corners)).all(axis=1)]
    pairs = pairs[region[pairs[:, 0]] != region[pairs[:, 1]]]
    lengths = np.hypot(*(corners[pairs[:, 0]] - corners[pairs[:, 1]]).T)
    shortest_first = np.argsort(lengths, kind="stable")
    between, best = np.unique(np.sort(region[pairs[shortest_first]], axis=1), axis=0, return_index=True)
    kept = shortest_first[best]
    bridge_of = {tuple(ends): pairs[index] for ends, index in zip(between.tolist(), kept, strict=True)}
    graph = coo_array((lengths[kept], between.T), shape=(len(rings), len(rings)))
    order, parents = breadth_first_order(minimum_spanning_tree(graph), 0, directed=False)
    bridges = {}
    for child in order[1:].tolist():
        parent = int(parents[child])
        ends = bridge_of[min(parent, child), max(parent, child)]
        landing, start = sorted(ends.tolist(), key=lambda corner: region[corner] == child)
        bridges[child] = parent, corners[landing], corners[start]
    return order.tolist(), bridges


def _far_around(corners: Ring) -> Ring:
    """Four points so far out that they change no bridge: with them, corners on one line have a triangulation too."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    middle, far = (low + high) / 2, 4 * (high - low).max()
    around: Ring = middle + far * np.array([(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)])
    return around
