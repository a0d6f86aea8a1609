"""Writes masks as polygons: GeoJSON MultiPolygons in pixels, traced by GDAL and simplified by GEOS.

The pixel in column x and row y is the square from (x, y) to (x + 1, y + 1), so at tolerance 0 a polygon has the same
area as its mask. Rings are closed; outer rings run counterclockwise as seen with y upwards (RFC 7946), holes clockwise.
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
"""How much IoU with the mask a simplified polygon may lose, for each pixel of the tolerance."""

TRIES = 3


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """The records of a part."""
    tolerance = DEFAULT_TOLERANCE if answer_format.tolerance is None else answer_format.tolerance
    return encode_part(part, partial(segmentation, tolerance=tolerance), answer_format.return_logits)


def segmentation(mask: NDArray[np.bool_], tolerance: float = DEFAULT_TOLERANCE) -> dict[str, Any]:
    """Returns the mask as a GeoJSON MultiPolygon.

    The same tolerance harms small or thin regions more than large ones. If the polygons would lose more than 1 % of IoU
    with the mask for each pixel of the tolerance, the contours follow the mask more closely: a half or a quarter of the
    tolerance is tried, and then the exact contours are kept.

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
    """Traces the mask's regions, with their holes, exactly along the edges of pixels."""
    # Regions that touch only at a corner are separate: one ring for both would touch itself, which is not valid.
    traced = features.shapes(mask.view(np.uint8), mask=mask, connectivity=4)
    return np.array([shapely.geometry.shape(geometry) for geometry, _ in traced], dtype=object)


def _iou(polygons: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Computes the IoU of a mask with the pixels whose centres are inside the polygons."""
    drawn = features.rasterize(polygons, out_shape=mask.shape, dtype=np.uint8).view(np.bool_)
    return float((drawn & mask).sum() / (drawn | mask).sum())


def _coordinates(polygon: Any) -> list[list[list[int]]]:
    # Simplifying removes corners but moves none, so coordinates stay whole numbers.
    rings = (polygon.exterior, *polygon.interiors)
    return [shapely.get_coordinates(ring).astype(int).tolist() for ring in rings]
