"""The contours of masks as polygons along the edges of pixels, simplified by GEOS.

The pixel in column x and row y is the square from (x, y) to (x + 1, y + 1), so exact contours have the mask's area.
"""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import features

from deployments.encoding.records import bbox
from deployments.encoding.tracing import traced

LOSS_PER_PIXEL = 0.01
"""How much IoU with the mask a simplified polygon may lose, for each pixel of the tolerance."""

TRIES = 3

MOST_CORNERS_TOGETHER = 20_000
"""Up to so many corners, polygons that reach into each other are simplified anew as one: some tenths of a second. The
time grows faster than the corners."""


def contours(mask: NDArray[np.bool_], tolerance: float) -> NDArray[Any]:
    """Returns the polygons of a mask's regions, with their holes: valid, with disjoint interiors.

    Regions that touch only at a corner are separate. Outer rings run counterclockwise as seen with y upwards, holes
    clockwise, so the mask is on the left of every ring.

    The same tolerance harms small or thin regions more than large ones. If the polygons would lose more than 1 % of IoU
    with the mask for each pixel of the tolerance, or if one would reach into another, the contours follow the mask more
    closely: a half or a quarter of the tolerance is tried, and then the exact contours are kept.

    Args:
        mask: `H×W` bool.
        tolerance: how far, in pixels, a simplified contour may be from the mask's own; 0 for exact contours.
    """
    left, top, width, height = bbox(mask)
    if not width:
        return np.array([], dtype=object)
    box = np.ascontiguousarray(mask[top : top + height, left : left + width])
    exact = traced(box)
    simplified = exact
    for attempt in range(TRIES if tolerance > 0 else 0):
        candidate = _simplified(exact, tolerance / 2**attempt)
        if shapely.is_valid(candidate) and _iou(candidate, box) >= 1 - LOSS_PER_PIXEL * tolerance:
            simplified = shapely.get_parts(candidate)
            break
    polygons = shapely.orient_polygons(simplified)
    moved: NDArray[Any] = shapely.transform(polygons, lambda corners: corners + np.array([left, top]))
    return moved


def rings_of(polygon: Any) -> list[NDArray[np.float64]]:
    """Returns a polygon's rings, the outer one first: `n×2` XY each, closed (the first corner is repeated)."""
    return [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]


def _simplified(polygons: NDArray[Any], tolerance: float) -> Any:
    """Simplifies polygons to a MultiPolygon, which may be invalid."""
    apart = shapely.multipolygons(shapely.simplify(polygons, tolerance, preserve_topology=True))
    if shapely.is_valid(apart) or shapely.get_num_coordinates(polygons).sum() > MOST_CORNERS_TOGETHER:
        return apart
    # As one geometry each contour heeds all others, though a small region can still end up inside another.
    return shapely.simplify(shapely.multipolygons(polygons), tolerance, preserve_topology=True)


def _iou(polygons: Any, mask: NDArray[np.bool_]) -> float:
    """Computes the IoU of a mask with the pixels whose centres are inside the polygons."""
    drawn = features.rasterize([polygons], out_shape=mask.shape, dtype=np.uint8).view(np.bool_)
    return float((drawn & mask).sum() / (drawn | mask).sum())
