"""Writes COCO's files: a dataset, with polygons or with run lengths, and a list of results.

pycocotools' `frPyObjects` fills polygons along the edges of pixels, and those that are not simplified come back as the
same mask. COCO's polygons have no holes: see bridges.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.encoding import rle
from deployments.encoding.objects import MaskedObject, json_text, objects_of, tolerance_of
from deployments.encoding.ring_set import Ring
from deployments.encoding.rings import edge_rings
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part

DECIMALS = 3
"""Of coordinates in pixels: where a bridge meets a slanting edge they are not whole."""


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """A dataset with polygons: a list of rings for each annotation, one for each region of the mask."""
    tolerance = tolerance_of(answer_format)

    def polygons(mask: NDArray[np.bool_]) -> list[NDArray[Any]]:
        return [_numbers(ring) for ring in edge_rings(mask, tolerance)]

    return _dataset(part, answer_format, polygons)


def write_rle(part: Part, answer_format: AnswerFormat) -> bytes:
    """A dataset with compressed run lengths."""
    return _dataset(part, answer_format, rle.segmentation)


def write_results(part: Part, _: AnswerFormat) -> bytes:
    """A list of results, for `loadRes`.

    Without `bbox`, which would be allowed: `loadRes` would take areas from the boxes then, not from the masks.
    """
    results = [
        {"image_id": 1, "category_id": 1, "segmentation": rle.segmentation(one.mask), "score": one.score}
        for one in objects_of(part)
    ]
    return json_text(results)


def _dataset(part: Part, answer_format: AnswerFormat, segmentation: Callable[[NDArray[np.bool_]], Any]) -> bytes:
    height, width = part.masks.image_size
    image = {"id": 1, "width": width, "height": height, "file_name": answer_format.shown_file_name}
    document = {
        "info": {"description": f"Segment Anything 2, {part.masks.model_id}"},
        "licenses": [],
        "images": [image],
        "annotations": [_annotation(one, segmentation) for one in objects_of(part)],
        "categories": [{"id": 1, "name": answer_format.shown_label, "supercategory": ""}],
    }
    return json_text(document)


def _annotation(one: MaskedObject, segmentation: Callable[[NDArray[np.bool_]], Any]) -> dict[str, Any]:
    return {
        # From 1: COCOeval takes a match with id 0 for none.
        "id": one.number,
        "image_id": 1,
        "category_id": 1,
        "segmentation": segmentation(one.mask),
        "area": one.area,
        "bbox": one.bbox,
        "iscrowd": 0,
        "score": one.score,
    }


def _numbers(ring: Ring) -> NDArray[Any]:
    """`[x1, y1, x2, y2, …]`, as whole numbers where all are."""
    numbers = ring.reshape(-1).round(DECIMALS)
    whole = numbers.astype(np.int64)
    return whole if (whole == numbers).all() else numbers
