"""Writes masks as polygons: GeoJSON MultiPolygons in pixels.

Coordinates run along the edges of pixels: see contours.py. Rings are closed; outer rings run counterclockwise as seen
with y upwards (RFC 7946), holes clockwise.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.encoding.contours import contours, rings_of
from deployments.encoding.records import encode_part
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part

DEFAULT_TOLERANCE = 1.0


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """The records of a part."""
    tolerance = DEFAULT_TOLERANCE if answer_format.tolerance is None else answer_format.tolerance
    return encode_part(part, partial(segmentation, tolerance=tolerance), answer_format.return_logits)


def segmentation(mask: NDArray[np.bool_], tolerance: float = DEFAULT_TOLERANCE) -> dict[str, Any]:
    """Returns the mask as a GeoJSON MultiPolygon: valid, with disjoint interiors.

    Args:
        mask: `H×W` bool.
        tolerance: how far, in pixels, a simplified contour may be from the mask's own: see `contours`.
    """
    # Simplifying removes corners but moves none, so coordinates stay whole numbers.
    polygons = [[ring.astype(int).tolist() for ring in rings_of(polygon)] for polygon in contours(mask, tolerance)]
    return {"type": "MultiPolygon", "coordinates": polygons}
