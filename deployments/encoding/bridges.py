"""Bridges join rings to one: each is a line that the ring walks along there and back, so that it encloses nothing."""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial import Delaunay

from deployments.encoding.ring_set import Ring, RingSet

FIRST_REACH = 4.0
"""How far up, in pixels, edges above a hole are looked for at first: further than most bridges of noise are long."""

REACH_GROWTH = 4


@dataclass(frozen=True, eq=False)
class Bridges:
    """Lines from one ring to another, whose rings are a forest: each ring has one bridge at most that leads to it.

    Attributes:
        edge: the index of the corner after which each leaves its ring.
        landing: `k×2` XY of the places there, on the edges that begin with these corners.
        start: the index of the corner at the other end.
    """

    edge: NDArray[np.int64]
    landing: Ring
    start: NDArray[np.int64]


def bridged(rings: RingSet) -> RingSet:
    """Joins the holes of each region to its outer ring, each by a bridge straight up from the hole's topmost corner.

    Above a hole is the region itself, up to the first ring that the bridge meets: so no bridge crosses anything.

    Returns:
        A ring for each region.
    """
    is_hole = _are_holes(rings)
    if not is_hole.any():
        return rings
    # From the top down: what a bridge meets comes before its hole then, and no bridges lead round in a circle.
    top = np.minimum.reduceat(rings.corners[:, 1], rings.first)
    rings = rings.in_order(np.lexsort((top, is_hole, rings.region)))
    return _joined(rings, _bridges_up(rings))


def single_ring(rings: RingSet) -> Ring:
    """Joins the rings of regions to one, by bridges between corners: the shortest that connect all regions.

    Args:
        rings: one for each region, one or more.
    """
    return _joined(rings, _shortest_bridges(rings)).padded().corners if len(rings) > 1 else rings.padded().corners


def _are_holes(rings: RingSet) -> NDArray[np.bool_]:
    are_holes: NDArray[np.bool_] = np.diff(rings.region, prepend=-1) == 0
    return are_holes


# ---- one ring of many


def _joined(rings: RingSet, bridges: Bridges) -> RingSet:
    """Walks along each ring that no bridge leads to, and at each bridge along the ring to which it leads.

    On the way is a place for each corner, and three for each bridge: where it leaves, its other end when the way is
    back there, and where it leaves again.
    """
    places = np.concatenate([rings.corners, bridges.landing, rings.corners[bridges.start], bridges.landing])
    leave, turn, back = len(rings.corners) + np.arange(3 * len(bridges.edge)).reshape(3, -1)
    after = rings.after
    # A ring that a bridge leads to is walked along from that corner to that corner.
    after[rings.before[bridges.start]] = turn
    # The bridges of an edge, as one comes to them.
    order = np.lexsort((np.hypot(*(bridges.landing - rings.corners[bridges.edge]).T), bridges.edge))
    edge, leave_there, back_there = bridges.edge[order], leave[order], back[order]
    is_first, is_last = np.diff(edge, prepend=-1) > 0, np.diff(edge, append=len(after)) > 0
    following = np.concatenate([after, bridges.start, back, back])
    following[edge[is_first]] = leave_there[is_first]
    following[back_there[is_last]] = after[edge[is_last]]
    following[back_there[~is_last]] = leave_there[~is_first]
    is_reached = np.zeros(len(rings), np.bool_)
    is_reached[rings.ring_of[bridges.start]] = True
    way, sizes = _walks(following, rings.first[~is_reached])
    assert len(way) == len(places), "each ring is reached, and each bridge"
    return RingSet(places[way], sizes, rings.region[~is_reached]).distinct()


def _walks(following: NDArray[np.int64], begins: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Follows places from each beginning until it comes again; returns all of them, and how many each walk has."""
    steps = following.tolist()
    way: list[int] = []
    ends = []
    for begin in begins.tolist():
        at = begin
        while True:
            way.append(at)
            at = steps[at]
            if at == begin:
                break
        ends.append(len(way))
    return np.array(way), np.diff(ends, prepend=0)


# ---- bridges to holes


def _bridges_up(rings: RingSet) -> Bridges:
    """Finds the bridge of each hole: up from its topmost corner to the edge of an earlier ring that it meets first.

    Edges are looked for in an R-tree, at first only a little way up, so that few others than the one are found.
    Of rings that were simplified one by one, a hole may reach out of the outer ring: then it is the nearest corner.

    Args:
        rings: of each region the outer ring, then those of the holes from the top down.
    """
    corners, ends, ring_of, first = rings.corners, rings.corners[rings.after], rings.ring_of, rings.first
    # The first of each ring in the order of heights.
    start = np.lexsort((corners[:, 1], ring_of))[first]
    top = corners[start]
    tree = shapely.STRtree(shapely.linestrings(np.stack([corners, ends], axis=1)))
    edge, landing = np.full(len(rings), -1), top.copy()
    holes = np.flatnonzero(_are_holes(rings))
    searching, reach, farthest = holes, FIRST_REACH, float(np.ptp(corners[:, 1]))
    while len(searching):
        rays = shapely.linestrings(np.stack([top[searching], top[searching] - (0, reach)], axis=1))
        ray, near = tree.query(rays)
        hole = searching[ray]
        met = _height(corners[near], ends[near], top[hole])
        is_earlier = (ring_of[near] < hole) & (rings.region[ring_of[near]] == rings.region[hole])
        is_above = is_earlier & (met >= top[hole, 1] - reach)
        hole, near, met = hole[is_above], near[is_above], met[is_above]
        # The lowest of each hole's, which are its last.
        order = np.lexsort((met, hole))
        lowest = order[np.append(np.diff(hole[order]) > 0, True)[: len(order)]]
        edge[hole[lowest]], landing[hole[lowest], 1] = near[lowest], met[lowest]
        searching = searching[edge[searching] < 0]
        if reach > farthest:
            break
        reach *= REACH_GROWTH
    for lost in searching.tolist():
        begin = first[np.searchsorted(rings.region, rings.region[lost])]
        earlier = corners[begin : first[lost]]
        edge[lost] = begin + np.hypot(*(earlier - top[lost]).T).argmin()
        landing[lost] = corners[edge[lost]]
    return Bridges(edge[holes], landing[holes], start[holes])


def _height(begin: Ring, end: Ring, point: Ring) -> NDArray[np.float64]:
    """Returns the y at which edges are met on the way up from points: `n`, −inf where one is not.

    Args:
        begin: `n×2`, of the edges.
        end: `n×2`, of the edges.
        point: `n×2`.
    """
    (x0, y0), (x1, y1), (x, y) = begin.T, end.T, point.T
    run = x1 - x0
    slanting = y0 + (y1 - y0) * np.divide(x - x0, run, out=np.zeros_like(run), where=run != 0)
    # On an edge that is itself vertical: the point, or the end that is nearest to it.
    upright = np.clip(y, np.minimum(y0, y1), np.maximum(y0, y1))
    met = np.where(run == 0, upright, slanting)
    is_met = (x >= np.minimum(x0, x1)) & (x <= np.maximum(x0, x1)) & (met <= y)
    return np.where(is_met, met, -np.inf)


# ---- bridges between regions


def _shortest_bridges(rings: RingSet) -> Bridges:
    """Finds the minimum spanning tree of regions.

    Its bridges are among the edges of the corners' Delaunay triangulation, as are those of every shortest tree, and
    among those from a corner to another one at the same place, which may be of another region.

    Args:
        rings: one for each region.
    """
    corners, ring_of = rings.corners, rings.ring_of
    pairs = np.concatenate([_twins(corners), _neighbours(corners)])
    pairs = pairs[ring_of[pairs[:, 0]] != ring_of[pairs[:, 1]]]
    lengths = np.hypot(*(corners[pairs[:, 0]] - corners[pairs[:, 1]]).T)
    pairs = pairs[np.argsort(lengths, kind="stable")]
    # The shortest between each two regions, each named by one number.
    low, high = np.sort(ring_of[pairs], axis=1).T
    between, shortest = np.unique(low * len(rings) + high, return_index=True)
    # Ranks order as lengths do, and none is 0, which would be no edge of the graph.
    graph = coo_array((shortest + 1.0, divmod(between, len(rings))), shape=(len(rings), len(rings)))
    order, parents = breadth_first_order(minimum_spanning_tree(graph), 0, directed=False)
    child = order[1:].astype(np.int64)
    parent = parents[child].astype(np.int64)
    names = np.minimum(parent, child) * len(rings) + np.maximum(parent, child)
    ends = pairs[shortest[np.searchsorted(between, names)]]
    is_turned = ring_of[ends[:, 0]] == child
    edge = np.where(is_turned, ends[:, 1], ends[:, 0])
    start = np.where(is_turned, ends[:, 0], ends[:, 1])
    return Bridges(edge, corners[edge], start)


def _twins(corners: Ring) -> NDArray[np.int64]:
    """Returns each corner that lies at the same place as another one, together with the first of that place, `n×2`."""
    order, is_first = _by_place(corners)
    place = np.cumsum(is_first) - 1
    return np.stack([order, order[is_first][place]], axis=1)[~is_first]


def _neighbours(corners: Ring) -> NDArray[np.int64]:
    """Returns the edges of a triangulation of all places, by the first corner of each, `n×2`."""
    order, is_first = _by_place(corners)
    first = order[is_first]
    found = Delaunay(np.concatenate([corners[first], _far_around(corners)]))
    triangles = found.simplices
    # Places that are too close to others for its precision are left out of the triangles.
    left_out = found.coplanar[:, [0, 2]]
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]], left_out])
    edges: NDArray[np.int64] = first[pairs[(pairs < len(first)).all(axis=1)]]
    return edges


def _by_place(corners: Ring) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the corners in an order in which equal ones are together, and which of that order begin a place."""
    order = np.lexsort(corners.T)
    return order, np.append(True, (np.diff(corners[order], axis=0) != 0).any(axis=1))


def _far_around(corners: Ring) -> Ring:
    """Four points so far out that they change no bridge: with them, corners on one line have a triangulation too."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    middle, far = (low + high) / 2, 4 * (high - low).max()
    around: Ring = middle + far * np.array([(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)])
    return around
