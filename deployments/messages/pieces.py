"""Cuts an answer into pieces; an encoder gets only those logits that its piece needs.

The default JSON is cut into bands of rows; other formats are cut into parts of a few objects, or not at all. Rows are
numbered over the whole answer: first the rows of all full-size masks, over objects and their candidates, then the rows
of all low-resolution logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from deployments.messages.answer_format import AnswerFormat
from deployments.messages.arrays import LOW_RES_SIZE, FloatArray
from deployments.messages.mask_set import MaskSet
from deployments.messages.segmentation import Segmentation
from deployments.messages.upsampling import source_rows

Text: TypeAlias = NDArray[np.uint8]
"""A text as an array of bytes: its receiver reads an array in shared memory, while Ray would copy `bytes` twice."""

BYTES_PER_LOGIT, BYTES_PER_BIT = 12, 2
"""Bytes of text of one mask value in the default answer, comma included: of a float32 (on average), of a 0 or 1."""


@dataclass(frozen=True, eq=False)
class LogitRows:
    """Some rows of the low-resolution logits of one mask.

    Attributes:
        mask: index of the mask, numbered over all objects and their candidates.
        start: index of the first row.
        rows: `n×256` float32, not clamped.
    """

    mask: int
    start: int
    rows: FloatArray


@dataclass(frozen=True, eq=False)
class Band:
    """Some rows of an answer, with the part of its Segmentation that they are written from.

    Attributes:
        image_size: height and width of the image in pixels.
        iou_predictions: `B×C` float32, the scores of all masks.
        has_object_axis: whether the answer's arrays lead with the object axis `B`.
        start: first row, from 0.
        stop: one past the last row.
        masks: for each full-size mask in the band, the logits that its rows are interpolated from.
        logits: for each mask whose low-resolution logits are in the band, their rows.
    """

    image_size: tuple[int, int]
    iou_predictions: FloatArray
    has_object_axis: bool
    start: int
    stop: int
    masks: tuple[LogitRows, ...]
    logits: tuple[LogitRows, ...]

    @property
    def scores(self) -> FloatArray:
        """`C` (or `B×C`) float32: the estimated IoU of each mask."""
        return self.iou_predictions if self.has_object_axis else self.iou_predictions[0]


def num_rows(segmentation: Segmentation) -> int:
    """Counts the rows of all full-size masks and of all low-resolution logits."""
    return int(segmentation.iou_predictions.size) * (segmentation.image_size[0] + LOW_RES_SIZE)


def row_bytes(segmentation: Segmentation, return_logits: bool) -> int:
    """Estimates the bytes of the longest row's text, in full-size masks and low-resolution logits."""
    width = segmentation.image_size[1]
    return max(LOW_RES_SIZE * BYTES_PER_LOGIT, width * (BYTES_PER_LOGIT if return_logits else BYTES_PER_BIT))


def cut_band(segmentation: Segmentation, start: int, stop: int) -> Band:
    """Cuts rows `start` to `stop` (exclusive) out of an answer's `num_rows`."""
    height = segmentation.image_size[0]
    full_rows = int(segmentation.iou_predictions.size) * height
    masks = [
        _logit_rows(segmentation, mask, *source_rows(height, LOW_RES_SIZE, first, last))
        for mask, first, last in _touched(start, min(stop, full_rows), height)
    ]
    logits = [
        _logit_rows(segmentation, mask, first, last)
        for mask, first, last in _touched(max(start - full_rows, 0), stop - full_rows, LOW_RES_SIZE)
    ]
    return Band(
        segmentation.image_size,
        segmentation.iou_predictions,
        segmentation.has_object_axis,
        start,
        stop,
        tuple(masks),
        tuple(logits),
    )


def _logit_rows(segmentation: Segmentation, mask: int, first: int, last: int) -> LogitRows:
    index = divmod(mask, segmentation.iou_predictions.shape[1])
    # A copy: Ray would send the whole array that a slice belongs to.
    return LogitRows(mask, first, segmentation.low_res_logits[index][first:last].copy())


def _touched(start: int, stop: int, height: int) -> Iterator[tuple[int, int, int]]:
    """Finds rows `start` to `stop` in masks of this height: yields (mask, first row in it, one past the last)."""
    while start < stop:
        mask, first = divmod(start, height)
        last = min(height, first + stop - start)
        yield mask, first, last
        start += last - first


PIXELS_PER_PART = 16_000_000
"""Full-size pixels in a part. An encoder writes a part in some tenths of a second, and holds one mask at a time."""

LOGITS_TEXT_BYTES = 12 * LOW_RES_SIZE**2
"""About the most bytes that one mask's low-resolution logits take as text."""

BYTES_PER_PART = 5_000_000
"""Limit on the bytes of text of low-resolution logits in a part."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some objects of an answer; the answer is the texts of its parts, joined in order.

    Attributes:
        masks: the masks of these objects alone.
        is_first: whether the answer begins with this part.
        is_last: whether the answer ends with this part.
        first_object: index of the part's first object in the answer.
    """

    masks: MaskSet
    is_first: bool
    is_last: bool
    first_object: int = 0


Piece: TypeAlias = Band | Part


def cut(masks: MaskSet, answer_format: AnswerFormat, band_bytes: int) -> Iterator[Piece]:
    """Cuts an answer into pieces; the answer is their texts, joined in order.

    Args:
        masks: the masks to write; their `check_format` has accepted the format.
        answer_format: how to write them.
        band_bytes: the most bytes of text in a band, approximately.

    Raises:
        TooLarge: there are more objects than the format can number.
    """
    if answer_format.traits.cut_by == "rows":
        # Only a Segmentation accepts a format that is cut by rows: see `check_format`.
        yield from _cut_by_rows(cast(Segmentation, masks), answer_format.return_logits, band_bytes)
        return
    if answer_format.traits.holds_one_mask and (index := masks.shown(answer_format.mask_index)) is not None:
        masks = masks.only(index)
    if answer_format.traits.one_mask_an_object:
        answer_format.check_objects(masks.num_objects)
        index = answer_format.mask_index
        masks = masks.best_of_each() if index is None else masks.only(index)
    if answer_format.traits.cut_by == "objects" and masks.num_objects:
        yield from _cut_by_objects(masks, answer_format.return_logits)
        return
    yield Part(masks, True, True)


def text_bytes(masks: MaskSet, answer_format: AnswerFormat) -> int:
    """Estimates the length of an answer in bytes."""
    if answer_format.traits.cut_by == "rows":
        segmentation = cast(Segmentation, masks)
        return num_rows(segmentation) * row_bytes(segmentation, answer_format.return_logits)
    # No format takes more bytes for a mask than its low-resolution logits have, unless the mask is noise.
    logits_as_text = answer_format.return_logits and answer_format.traits.cut_by == "objects"
    return masks.low_res_logits.nbytes + (LOGITS_TEXT_BYTES * masks.num_masks if logits_as_text else 0)


def _cut_by_rows(segmentation: Segmentation, return_logits: bool, band_bytes: int) -> Iterator[Band]:
    rows = num_rows(segmentation)
    count = max(1, band_bytes // row_bytes(segmentation, return_logits))
    for start in range(0, rows, count):
        yield cut_band(segmentation, start, min(start + count, rows))


def _cut_by_objects(masks: MaskSet, return_logits: bool) -> Iterator[Part]:
    height, width = masks.image_size
    masks_per_object = masks.num_masks // masks.num_objects
    count = max(1, PIXELS_PER_PART // (height * width * masks_per_object))
    if return_logits:
        count = max(1, min(count, BYTES_PER_PART // (LOGITS_TEXT_BYTES * masks_per_object)))
    for first in range(0, masks.num_objects, count):
        last = min(first + count, masks.num_objects)
        yield Part(masks.objects(first, last), first == 0, last == masks.num_objects, first)
