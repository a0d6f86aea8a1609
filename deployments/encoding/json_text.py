"""The default answer, `{"masks": "…", "scores": "…", "logits": "…"}`: three strings that hold JSON, written in bands.

The rows of all masks are counted through: row `m·H + y` is row y of mask m, over objects and their candidates. Bands
that follow each other without gaps concatenate to the whole body; the first brings the opening, the last the rest.
Numbers are the shortest text that reads back to the same float32 (orjson); 0/1 masks are integers. Nothing in that
text needs escaping inside a JSON string.
"""

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from deployments.schema import Segmentation
from deployments.upsampling import upsample_rows


def encode_band(segmentation: Segmentation, start: int, stop: int, return_logits: bool) -> bytes:
    """The text of rows `start` to `stop`, counted through all masks.

    Args:
        segmentation: what the model answered.
        start: first row, from 0.
        stop: one past the last row, at most `objects·masks·height`.
        return_logits: un-thresholded float masks, or 0 and 1.
    """
    height = segmentation.image_size[0]
    num_objects, num_masks = segmentation.iou_predictions.shape
    parts = [b'{"masks":"[' if start == 0 else b""]
    row = start
    while row < stop:
        mask, first = divmod(row, height)
        last = min(height, first + stop - row)
        opens_object = segmentation.has_object_axis and mask % num_masks == 0
        closes_object = segmentation.has_object_axis and (mask + 1) % num_masks == 0
        if first == 0:
            parts += [b"," if mask else b"", b"[" if opens_object else b"", b"["]
        else:
            parts.append(b",")
        parts.append(_rows(segmentation, mask, first, last, return_logits))
        if last == height:
            parts += [b"]", b"]" if closes_object else b""]
        row += last - first
    if stop == num_objects * num_masks * height:
        parts += [b']","scores":"', _text(segmentation.scores), b'","logits":"', _text(segmentation.logits), b'"}']
    return b"".join(parts)


def _rows(segmentation: Segmentation, mask: int, first: int, last: int, return_logits: bool) -> bytes:
    """Rows of one mask as JSON arrays, without the brackets around them."""
    num_masks = segmentation.iou_predictions.shape[1]
    low_res = segmentation.low_res_logits[divmod(mask, num_masks)]
    rows = upsample_rows(low_res, segmentation.image_size, first, last)
    return _text(rows if return_logits else (rows > 0).view(np.uint8))[1:-1]


def _text(array: NDArray[Any]) -> bytes:
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
