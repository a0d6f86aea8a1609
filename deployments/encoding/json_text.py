"""Writes the default answer, `{"masks": "…", "scores": "…", "logits": "…"}`, in bands: three strings that hold JSON.

Consecutive bands (see messages/pieces.py) concatenate to the whole body, so that never more than one band needs to
exist at a time. Numbers are written as the shortest text that reads back to the same float32 (orjson); 0/1 masks as
integers. Nothing in this text needs escaping inside a JSON string.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from deployments.messages.answer_format import AnswerFormat
from deployments.messages.arrays import LOGIT_LIMIT, LOW_RES_SIZE
from deployments.messages.pieces import Band, LogitRows
from deployments.messages.upsampling import upsample_rows

Rows = Callable[[LogitRows, int, int], NDArray[Any]]
"""Computes some rows of a mask from the logits that hold them, the first row, and one past the last row."""


def write(band: Band, answer_format: AnswerFormat) -> bytes:
    """The text of a band."""
    return encode_band(band, answer_format.return_logits)


def encode_band(band: Band, return_logits: bool) -> bytes:
    """Writes the text of a band.

    Args:
        band: some rows of an answer.
        return_logits: True for un-thresholded float masks, False for masks of 0 and 1.
    """

    def mask_rows(source: LogitRows, first: int, last: int) -> NDArray[Any]:
        rows = upsample_rows(source.rows, band.image_size, first, last, LOW_RES_SIZE, source.start)
        return rows if return_logits else (rows > 0).view(np.uint8)

    def logits_rows(source: LogitRows, first: int, last: int) -> NDArray[Any]:
        return source.rows[first - source.start : last - source.start].clip(-LOGIT_LIMIT, LOGIT_LIMIT)

    parts = []
    start, stop = band.start, band.stop
    between = b'","scores":"' + _text(band.scores) + b'","logits":"'
    for opening, height, of_masks, rows in (
        (b'{"masks":"', band.image_size[0], band.masks, mask_rows),
        (between, LOW_RES_SIZE, band.logits, logits_rows),
    ):
        count = band.iou_predictions.size * height
        first, last = max(start, 0), min(stop, count)
        if first < last:
            parts += [opening + b"[" if first == 0 else b"", _stack(band, height, of_masks, rows, first, last)]
            parts.append(b"]" if last == count else b"")
        start, stop = start - count, stop - count
    parts.append(b'"}' if stop == 0 else b"")
    return b"".join(parts)


def _stack(band: Band, height: int, of_masks: tuple[LogitRows, ...], rows: Rows, start: int, stop: int) -> bytes:
    """Writes rows `start` to `stop` of masks of this height, with the brackets of masks and objects at their ends."""
    candidates = band.iou_predictions.shape[1]
    parts = []
    for source in of_masks:
        first = start - source.mask * height
        last = min(height, stop - source.mask * height)
        candidate = source.mask % candidates
        if first == 0:
            opens_object = band.has_object_axis and candidate == 0
            parts.append((b"," if source.mask else b"") + (b"[[" if opens_object else b"["))
        else:
            parts.append(b",")
        parts.append(_text(rows(source, first, last))[1:-1])
        if last == height:
            closes_object = band.has_object_axis and candidate == candidates - 1
            parts.append(b"]]" if closes_object else b"]")
        start += last - first
    return b"".join(parts)


def _text(array: NDArray[Any]) -> bytes:
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
