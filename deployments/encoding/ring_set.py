"""RingSet: the rings of a mask's regions, with all corners in one array."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

Ring: TypeAlias = NDArray[np.float64]
"""`n×2` XY in pixels; the first corner is not repeated."""

FEWEST_CORNERS = 3


@dataclass(frozen=True, eq=False)
class RingSet:
    """Rings, each of one corner at least. Hundreds of thousands of short ones take no longer than one long one.

    Attributes:
        corners: `n×2` XY, ring after ring; the first corner of a ring is not repeated.
        sizes: how many corners each ring has.
        region: the number of each ring's region, ascending; the outer ring of a region is its first.
    """

    corners: Ring
    sizes: NDArray[np.int64]
    region: NDArray[np.int64]

    @classmethod
    def of_polygons(cls, polygons: NDArray[Any]) -> "RingSet":
        """Returns the rings of shapely's polygons."""
        rings, region = shapely.get_rings(polygons, return_index=True)
        return cls._of_closed(rings, region)

    @classmethod
    def _of_closed(cls, lines: NDArray[Any], region: NDArray[np.int64]) -> "RingSet":
        """Returns shapely's lines, of which each ends where it begins."""
        closed, ring_of = shapely.get_coordinates(lines, return_index=True)
        is_last = np.append(ring_of[1:] != ring_of[:-1], True)[: len(closed)]
        return cls(closed[~is_last], np.bincount(ring_of[~is_last], minlength=len(lines)), region)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def first(self) -> NDArray[np.int64]:
        """The index of each ring's first corner."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def ring_of(self) -> NDArray[np.int64]:
        """The ring of each corner."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def before(self) -> NDArray[np.int64]:
        """The index of the corner before each, around its ring."""
        indices = np.arange(-1, len(self.corners) - 1)
        indices[self.first] = self.first + self.sizes - 1
        return indices

    @property
    def after(self) -> NDArray[np.int64]:
        """The index of the corner after each, around its ring."""
        indices = np.arange(1, len(self.corners) + 1)
        indices[self.first + self.sizes - 1] = self.first
        return indices

    def rings(self) -> list[Ring]:
        """Returns the rings one by one."""
        return np.split(self.corners, np.cumsum(self.sizes)[:-1]) if len(self) else []

    def distinct(self) -> "RingSet":
        """Removes corners that repeat the one before."""
        return self._only((self.corners != self.corners[self.before]).any(axis=1))

    def without_straight(self) -> "RingSet":
        """Removes the corners at which a ring goes straight on; where it turns back, the corner stays."""
        ring = self.distinct()
        x_before, y_before = (ring.corners - ring.corners[ring.before]).T
        x_after, y_after = (ring.corners[ring.after] - ring.corners).T
        is_straight = (x_before * y_after == y_before * x_after) & (x_before * x_after + y_before * y_after > 0)
        return ring._only(~is_straight)

    def simplified(self, tolerance: float) -> "RingSet":
        """Simplifies rings of more than three corners, each for itself: so they may run into one another.

        Args:
            tolerance: how far, in pixels, a ring may be from what it was.
        """
        first = self.first
        closed = np.insert(np.arange(len(self.corners)), first + self.sizes, first)
        ring_of = np.repeat(np.arange(len(self)), self.sizes + 1)
        lines = shapely.linestrings(self.corners[closed], indices=ring_of)
        is_long = self.sizes > FEWEST_CORNERS
        lines[is_long] = shapely.simplify(lines[is_long], tolerance, preserve_topology=False)
        return self._of_closed(lines, self.region)

    def in_order(self, order: NDArray[np.int64]) -> "RingSet":
        """Returns the rings in another order, in which the regions ascend too."""
        sizes = self.sizes[order]
        moved = np.repeat(self.first[order] - (np.cumsum(sizes) - sizes), sizes)
        return RingSet(self.corners[moved + np.arange(len(self.corners))], sizes, self.region[order])

    def padded(self) -> "RingSet":
        """Repeats the last corner of rings of one or two, so that there are three at least."""
        times = np.ones(len(self.corners), np.int64)
        times[self.first + self.sizes - 1] += np.maximum(FEWEST_CORNERS - self.sizes, 0)
        sizes = np.maximum(self.sizes, FEWEST_CORNERS)
        return RingSet(np.repeat(self.corners, times, axis=0), sizes, self.region)

    def _only(self, kept: NDArray[np.bool_]) -> "RingSet":
        """Returns the rings with some of their corners; of one that would have none, the first stays."""
        counts = np.bincount(self.ring_of, weights=kept, minlength=len(self)).astype(np.int64)
        kept[self.first[counts == 0]] = True
        return RingSet(self.corners[kept], np.maximum(counts, 1), self.region)
