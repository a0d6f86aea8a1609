"""Writes GeoJSON as QuPath imports it: a feature for each object, with coordinates along the edges of pixels."""

import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.encoding import polygons
from deployments.encoding.objects import json_text, objects_of, tolerance_of
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part

NAMESPACE = uuid.UUID("6f0f3f5e-4a53-5f0b-9f0a-0d3c1b6c5f11")
"""Of the ids of objects: any fixed UUID does."""

COLOUR = (230, 60, 60)


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """A collection of annotations, each a Polygon, or a MultiPolygon if its mask has several regions."""
    label, tolerance = answer_format.shown_label, tolerance_of(answer_format)
    features = []
    for one in objects_of(part):
        properties = {
            "objectType": "annotation",
            "name": f"{label} {one.number}",
            "color": COLOUR,
            "classification": {"name": label, "color": COLOUR},
        }
        feature = {
            "type": "Feature",
            # The same for the same mask: a file that is imported twice adds nothing.
            "id": str(uuid.uuid5(NAMESPACE, one.digest(part.masks.image_id))),
            "geometry": _geometry(one.mask, tolerance),
            "properties": properties,
        }
        features.append(feature)
    return json_text({"type": "FeatureCollection", "features": features})


def _geometry(mask: NDArray[np.bool_], tolerance: float) -> dict[str, Any]:
    geometry = polygons.segmentation(mask, tolerance)
    if len(geometry["coordinates"]) == 1:
        return {"type": "Polygon", "coordinates": geometry["coordinates"][0]}
    return geometry
