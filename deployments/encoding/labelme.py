"""Writes LabelMe's files, with shapes of the kind `mask`, or with polygons.

LabelMe fills a polygon together with the pixels on its line, so polygons run through the centres of pixels.
"""

import base64
from typing import Any

import numpy as np
from PIL import Image

from deployments.encoding.objects import image_bytes, json_text, objects_of, tolerance_of
from deployments.encoding.png import COMPRESS_LEVEL
from deployments.encoding.rings import centre_rings
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part

VERSION = "7.1.0"


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """A file with a mask for each object: a picture of 0 and 1 within its box, whose right and bottom are inclusive."""
    shapes = []
    for one in objects_of(part):
        left, top, width, height = one.bbox
        picture = image_bytes(Image.fromarray(one.crop.view(np.uint8)), "PNG", compress_level=COMPRESS_LEVEL)
        corners = [[left, top], [left + width - 1, top + height - 1]]
        shapes.append(_shape(answer_format, "mask", corners, None, base64.b64encode(picture).decode("ascii")))
    return _file(part, answer_format, shapes)


def write_polygons(part: Part, answer_format: AnswerFormat) -> bytes:
    """A file with a polygon for each region of each object's mask; the regions of an object are a group."""
    tolerance = tolerance_of(answer_format)
    shapes = [
        _shape(answer_format, "polygon", ring, one.number)
        for one in objects_of(part)
        for ring in centre_rings(one.mask, tolerance).rings()
    ]
    return _file(part, answer_format, shapes)


def _shape(
    answer_format: AnswerFormat, kind: str, points: Any, group_id: int | None, mask: str | None = None
) -> dict[str, Any]:
    return {
        "label": answer_format.shown_label,
        "points": points,
        "group_id": group_id,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": mask,
    }


def _file(part: Part, answer_format: AnswerFormat, shapes: list[dict[str, Any]]) -> bytes:
    height, width = part.masks.image_size
    document: dict[str, Any] = {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": answer_format.shown_file_name,
        # LabelMe reads the picture from imagePath then; it accepts no file that lacks the key.
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return json_text(document)
