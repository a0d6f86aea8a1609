"""Writes masks as polygons: GeoJSON MultiPolygons in pixels, or in longitudes and latitudes.

Coordinates in pixels run along the edges of pixels: see contours.py. Rings are closed; outer rings run counterclockwise
as seen with y upwards (RFC 7946), holes clockwise.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.encoding.contours import contours, rings_of
from deployments.encoding.records import Geometry, encode_part
from deployments.encoding.wgs84 import in_wgs84
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.georeference import Georeference
from deployments.messages.pieces import Part

DEFAULT_TOLERANCE = 1.0


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """The records of a part."""
    tolerance = DEFAULT_TOLERANCE if answer_format.tolerance is None else answer_format.tolerance
    geometry: Geometry = partial(segmentation, tolerance=tolerance)
    if answer_format.is_on_map:
        assert answer_format.georeference is not None, "checked when the answer began"
        geometry = partial(map_segmentation, tolerance=tolerance, georeference=answer_format.georeference)
    return encode_part(part, geometry, answer_format.return_logits)


def segmentation(mask: NDArray[np.bool_], tolerance: float = DEFAULT_TOLERANCE) -> dict[str, Any]:
    """Returns the mask as a GeoJSON MultiPolygon: valid, with disjoint interiors.

    Args:
        mask: `H×W` bool.
        tolerance: how far, in pixels, a simplified contour may be from the mask's own: see `contours`.
    """
    # Simplifying removes corners but moves none, so coordinates stay whole numbers.
    polygons = [[ring.astype(int).tolist() for ring in rings_of(polygon)] for polygon in contours(mask, tolerance)]
    return {"type": "MultiPolygon", "coordinates": polygons}


def map_segmentation(mask: NDArray[np.bool_], tolerance: float, georeference: Georeference) -> dict[str, Any]:
    """Returns the mask as a GeoJSON MultiPolygon in WGS 84, as RFC 7946 has it.

    Args:
        mask: `H×W` bool.
        tolerance: see `segmentation`, in pixels.
        georeference: of the picture.
    """
    return {"type": "MultiPolygon", "coordinates": in_wgs84(contours(mask, tolerance), georeference)}
