"""Bridges join rings to one: each is a line that the ring walks along there and back, so that it encloses nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial import Delaunay

Ring: TypeAlias = NDArray[np.float64]
"""`n×2` XY in pixels; the first corner is not repeated."""

FEWEST_CORNERS = 3

FIRST_REACH = 4.0
"""How far up, in pixels, edges above a hole are looked for at first: further than most bridges of noise are long."""

REACH_GROWTH = 4


@dataclass(frozen=True, eq=False)
class Bridge:
    """A line from one ring to another.

    Attributes:
        parent: the index of the ring that it leaves from.
        edge: the index of the corner of that ring after which it leaves.
        landing: XY of the place there, on the edge that begins with that corner.
        child: the index of the ring that it leads to.
        start: the index of that ring's corner at its other end.
    """

    parent: int
    edge: int
    landing: NDArray[np.float64]
    child: int
    start: int


def bridged(rings: list[Ring]) -> Ring:
    """Joins the holes of a region to its outer ring, each by a bridge straight up from the hole's topmost corner.

    Above a hole is the region itself, up to the first ring that the bridge meets: so no bridge crosses anything.

    Args:
        rings: the outer ring, then those of the holes.
    """
    whole, *holes = rings
    if not holes:
        return whole
    # From the top down: what a bridge meets comes before its hole then, and no bridges lead round in a circle.
    rings = [whole, *sorted(holes, key=lambda ring: float(ring[:, 1].min()))]
    return _joined(rings, _bridges_up(rings))


def single_ring(rings: list[Ring]) -> Ring:
    """Joins the rings of regions to one, by bridges between corners: the shortest that connect all regions.

    Args:
        rings: one or more, which share no corner.
    """
    return rings[0] if len(rings) == 1 else padded(_joined(rings, _shortest_bridges(rings)))


def distinct(ring: Ring) -> Ring:
    """Removes corners that repeat the one before."""
    differs = (ring != np.roll(ring, 1, axis=0)).any(axis=1)
    return ring[differs] if differs.any() else ring[:1]


def padded(ring: Ring) -> Ring:
    """Repeats the last corner of a ring of one or two, so that there are three at least."""
    return np.concatenate([ring, np.repeat(ring[-1:], max(0, FEWEST_CORNERS - len(ring)), axis=0)])


# ---- one ring of many


def _joined(rings: list[Ring], bridges: list[Bridge]) -> Ring:
    """Walks along the first ring, and at each bridge along the ring to which it leads.

    Args:
        rings: one or more.
        bridges: one to each ring but the first, on ways that begin at the first.
    """
    starts = np.zeros(len(rings), int)
    branches: list[list[Bridge]] = [[] for _ in rings]
    for bridge in bridges:
        starts[bridge.child] = bridge.start
        branches[bridge.parent].append(bridge)

    def walk(index: int) -> Iterator[Ring | int]:
        ring, start, passed = np.roll(rings[index], -starts[index], axis=0), int(starts[index]), 0
        for edge, bridge in _in_order(ring, start, branches[index]):
            yield ring[passed : edge + 1]
            yield bridge.landing[None]
            yield bridge.child
            yield bridge.landing[None]
            passed = edge + 1
        yield ring[passed:]
        yield ring[:1]

    # Not recursive: thousands of holes may hang below each other.
    pieces: list[Ring] = []
    walks = [walk(0)]
    while walks:
        piece = next(walks[-1], None)
        if piece is None:
            walks.pop()
        elif isinstance(piece, int):
            walks.append(walk(piece))
        else:
            pieces.append(piece)
    return distinct(np.concatenate(pieces))


def _in_order(turned: Ring, start: int, bridges: list[Bridge]) -> list[tuple[int, Bridge]]:
    """Sorts a ring's bridges, with the corner before each, as one comes to them on the way from the corner `start`."""

    def place(at: tuple[int, Bridge]) -> tuple[int, float]:
        edge, bridge = at
        return edge, float(np.hypot(*(bridge.landing - turned[edge])))

    return sorted((((bridge.edge - start) % len(turned), bridge) for bridge in bridges), key=place)


# ---- bridges to holes


def _bridges_up(rings: list[Ring]) -> list[Bridge]:
    """Finds the bridge of each hole: up from its topmost corner to the edge of an earlier ring that it meets first.

    Edges are looked for in an R-tree, at first only a little way up, so that few others than the one are found.
    Of rings that were simplified one by one, a hole may reach out of the outer ring: then it is the nearest corner.

    Args:
        rings: the outer ring, then those of the holes from the top down.
    """
    corners, ends = np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    sizes = np.array([len(ring) for ring in rings])
    first, ring_of = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(rings)), sizes)
    start = np.array([ring[:, 1].argmin() for ring in rings])
    top = corners[first + start]
    tree = shapely.STRtree(shapely.linestrings(np.stack([corners, ends], axis=1)))
    edge, landing = np.full(len(rings), -1), top.copy()
    searching, reach, farthest = np.arange(1, len(rings)), FIRST_REACH, float(np.ptp(corners[:, 1]))
    while len(searching):
        rays = shapely.linestrings(np.stack([top[searching], top[searching] - (0, reach)], axis=1))
        ray, near = tree.query(rays)
        hole = searching[ray]
        met = _height(corners[near], ends[near], top[hole])
        is_above = (ring_of[near] < hole) & (met >= top[hole, 1] - reach)
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
        earlier = corners[: first[lost]]
        edge[lost] = np.hypot(*(earlier - top[lost]).T).argmin()
        landing[lost] = earlier[edge[lost]]
    parent = ring_of[edge]
    return [
        Bridge(int(parent[hole]), int(edge[hole] - first[parent[hole]]), landing[hole], hole, int(start[hole]))
        for hole in range(1, len(rings))
    ]


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


def _shortest_bridges(rings: list[Ring]) -> list[Bridge]:
    """Finds the minimum spanning tree of regions.

    Its bridges are among the edges of the corners' Delaunay triangulation, as are those of every shortest tree.
    """
    sizes = np.array([len(ring) for ring in rings])
    corners, first = np.unique(np.concatenate(rings), axis=0, return_index=True)
    region = np.repeat(np.arange(len(rings)), sizes)[first]
    place = first - (np.cumsum(sizes) - sizes)[region]
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
    bridges = []
    for child in order[1:].tolist():
        parent = int(parents[child])
        ends = bridge_of[min(parent, child), max(parent, child)]
        landing, start = sorted(ends.tolist(), key=lambda corner: region[corner] == child)
        bridges.append(Bridge(parent, int(place[landing]), corners[landing], child, int(place[start])))
    return bridges


def _far_around(corners: Ring) -> Ring:
    """Four points so far out that they change no bridge: with them, corners on one line have a triangulation too."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    middle, far = (low + high) / 2, 4 * (high - low).max()
    around: Ring = middle + far * np.array([(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)])
    return around
