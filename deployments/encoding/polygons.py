"""Masks as polygons: GeoJSON MultiPolygons in pixels, traced by GDAL and simplified by GEOS.

The pixel in column x and row y is the square from (x, y) to (x + 1, y + 1), so at tolerance 0 a polygon's area is its
mask's. Rings are closed, the outer ones counterclockwise as seen with y upwards (RFC 7946), holes the other way round.
"""

from functools import partial
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import features

from deployments.encoding.records import encode_part
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part

DEFAULT_TOLERANCE = 1.0

LOSS_PER_PIXEL = 0.01
"""How much of its IoU with the mask simplifying may cost, for each pixel of the tolerance."""

TRIES = 3


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """The records of a part."""
    tolerance = DEFAULT_TOLERANCE if answer_format.tolerance is None else answer_format.tolerance
    return encode_part(part, partial(segmentation, tolerance=tolerance), answer_format.return_logits)


def segmentation(mask: NDArray[np.bool_], tolerance: float = DEFAULT_TOLERANCE) -> dict[str, Any]:
    """A GeoJSON MultiPolygon.

    Small or thin regions would suffer more from the same tolerance than large ones: where their polygons would miss
    more than 1 % of the mask for each pixel of it (intersection over union), the contours follow the mask more closely.

    Args:
        mask: `H×W` bool.
        tolerance: how far, in pixels, a simplified contour may be from the mask's own.
    """
    exact = _polygons(mask)
    simplified = exact
    for attempt in range(TRIES if exact.size and tolerance > 0 else 0):
        candidate = shapely.simplify(exact, tolerance / 2**attempt, preserve_topology=True)
        if _iou(candidate, mask) >= 1 - LOSS_PER_PIXEL * tolerance:
            simplified = candidate
            break
    polygons = shapely.orient_polygons(simplified)
    return {"type": "MultiPolygon", "coordinates": [_coordinates(polygon) for polygon in polygons]}


def _polygons(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """The mask's regions, with their holes, exactly along the edges of pixels."""
    # Regions that touch at a corner are two: a ring that touched itself there would be no valid one.
    traced = features.shapes(mask.view(np.uint8), mask=mask, connectivity=4)
    return np.array([shapely.geometry.shape(geometry) for geometry, _ in traced], dtype=object)


def _iou(polygons: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Intersection over union of a mask and of the pixels whose centres are inside the polygons."""
    drawn = features.rasterize(polygons, out_shape=mask.shape, dtype=np.uint8).view(np.bool_)
    return float((drawn & mask).sum() / (drawn | mask).sum())


def _coordinates(polygon: Any) -> list[list[list[int]]]:
    # Simplifying leaves out corners and moves none: they stay whole numbers.
    rings = (polygon.exterior, *polygon.interiors)
    return [shapely.get_coordinates(ring).astype(int).tolist() for ring in rings]
