"""The JSON document that `rle` and `polygons` share: a record for each mask, written part by part."""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from deployments.messages.arrays import LOGIT_LIMIT
from deployments.messages.mask_set import MaskSet
from deployments.messages.pieces import Part

Geometry = Callable[[NDArray[np.bool_]], Any]
"""A function that turns a mask, `H×W` bool, into a format's value of `segmentation`."""


def encode_part(part: Part, geometry: Geometry, return_logits: bool) -> bytes:
    """Writes a part of `{"image_id": …, "model_id": …, "size": [h, w], "masks": […]}`.

    Each mask is `{"segmentation": …, "area": …, "bbox": [x, y, w, h], …}` with its scores. With an object axis, `masks`
    holds a list for each object.

    Args:
        part: some objects of the answer.
        geometry: writes a mask.
        return_logits: whether each record also holds `logits`, a later request's `mask_input`: `1×256×256`, clamped.
    """
    masks = part.masks
    head = {"image_id": masks.image_id, "model_id": masks.model_id, "size": masks.image_size, "masks": []}
    opening = orjson.dumps(head).removesuffix(b"]}") if part.is_first else b","
    records = [_record(masks, index, geometry, return_logits) for index in range(masks.num_masks)]
    text = orjson.dumps(masks.grouped(records), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    return opening + text + (b"]}" if part.is_last else b"")


def _record(masks: MaskSet, index: int, geometry: Geometry, return_logits: bool) -> dict[str, Any]:
    mask = masks.mask(index)
    record = {
        "segmentation": geometry(mask),
        **masks.facts(index),
        "area": int(np.count_nonzero(mask)),
        "bbox": bbox(mask),
    }
    if return_logits:
        low_res_logits = masks.low_res_logits.reshape(-1, 1, *masks.low_res_logits.shape[-2:])[index]
        record["logits"] = low_res_logits.clip(-LOGIT_LIMIT, LOGIT_LIMIT)
    return record


def bbox(mask: NDArray[np.bool_]) -> list[int]:
    """Returns `[x, y, width, height]` of the smallest box around a mask, in pixels; zeros if the mask is empty."""
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    if not columns.size:
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
