"""The pieces that an answer is cut into, each sent to an encoder with no more of the masks than it is made of.

The default JSON is cut into bands of rows, the other formats into parts of a few objects. Rows are counted through:
first those of all full-size masks, over objects and their candidates, then those of all low-resolution logits.
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
"""The bytes of some text, as an array: Ray lets its reader look into shared memory, where it would copy bytes twice."""

BYTES_PER_LOGIT, BYTES_PER_BIT = 12, 2
"""Text of one mask value in the default answer, comma included: a float32 on average, and 0 or 1."""


@dataclass(frozen=True, eq=False)
class LogitRows:
    """Some rows of the low-resolution logits of one mask.

    Attributes:
        mask: the mask, counted through objects and their candidates.
        start: the first of the rows.
        rows: `n×256` float32, not clamped.
    """

    mask: int
    start: int
    rows: FloatArray


@dataclass(frozen=True, eq=False)
class Band:
    """Some rows of an answer, and no more of its Segmentation than it takes to write them.

    Attributes:
        image_size: height and width of the image in pixels.
        iou_predictions: `B×C` float32, of all masks.
        has_object_axis: whether the answer leads with the object axis `B`.
        start: first row, from 0.
        stop: one past the last row.
        masks: the logits that rows of full-size masks are interpolated from, for each mask.
        logits: the rows of low-resolution logits, likewise.
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
    """Rows of all full-size masks and of all low-resolution logits."""
    return int(segmentation.iou_predictions.size) * (segmentation.image_size[0] + LOW_RES_SIZE)


def row_bytes(segmentation: Segmentation, return_logits: bool) -> int:
    """About the longest text of a row, of a full-size mask or of low-resolution logits."""
    width = segmentation.image_size[1]
    return max(LOW_RES_SIZE * BYTES_PER_LOGIT, width * (BYTES_PER_LOGIT if return_logits else BYTES_PER_BIT))


def cut_band(segmentation: Segmentation, start: int, stop: int) -> Band:
    """Rows `start` to `stop` of the answer (0 to `num_rows`)."""
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
    # A copy: of a slice, Ray would send what it is a slice of.
    return LogitRows(mask, first, segmentation.low_res_logits[index][first:last].copy())


def _touched(start: int, stop: int, height: int) -> Iterator[tuple[int, int, int]]:
    """Rows `start` to `stop`, counted through masks of this height, as (mask, first row, one past the last)."""
    while start < stop:
        mask, first = divmod(start, height)
        last = min(height, first + stop - start)
        yield mask, first, last
        start += last - first


PIXELS_PER_PART = 16_000_000
"""Of full-size masks, which an encoder holds one at a time: some tenths of a second of its work."""


LOGITS_TEXT_BYTES = 12 * LOW_RES_SIZE**2
"""About the longest text of one mask's low-resolution logits."""


BYTES_PER_PART = 5_000_000
"""Of such text."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some objects of an answer; the texts of all parts follow each other.

    Attributes:
        masks: no more of them than the part is made of.
        is_first: the text begins with them.
        is_last: the text ends with them.
    """

    masks: MaskSet
    is_first: bool
    is_last: bool


Piece: TypeAlias = Band | Part


def cut(masks: MaskSet, answer_format: AnswerFormat, band_bytes: int) -> Iterator[Piece]:
    """The pieces of an answer; the texts that are written of them follow each other.

    Args:
        masks: what is answered, of which `check_format` has accepted the format.
        answer_format: how it is written.
        band_bytes: about the longest text of a band.
    """
    if answer_format.traits.cut_by == "rows":
        # The only masks whose `check_format` accepts such a format.
        yield from _cut_by_rows(cast(Segmentation, masks), answer_format.return_logits, band_bytes)
        return
    if answer_format.traits.holds_one_mask and (index := masks.shown(answer_format.mask_index)) is not None:
        masks = masks.only(index)
    if answer_format.traits.cut_by == "objects" and masks.num_objects:
        yield from _cut_by_objects(masks, answer_format.return_logits)
        return
    yield Part(masks, True, True)


def text_bytes(masks: MaskSet, answer_format: AnswerFormat) -> int:
    """Estimates the length of an answer in bytes."""
    if answer_format.traits.cut_by == "rows":
        segmentation = cast(Segmentation, masks)
        return num_rows(segmentation) * row_bytes(segmentation, answer_format.return_logits)
    # No format packs a mask into more than what it is made of, noise apart.
    logits_as_text = answer_format.return_logits and answer_format.traits.cut_by == "objects"
    return masks.low_res_logits.nbytes + (LOGITS_TEXT_BYTES * masks.num_masks if logits_as_text else 0)


def _cut_by_rows(segmentation: Segmentation, return_logits: bool, band_bytes: int) -> Iterator[Band]:
    rows = num_rows(segmentation)
    count = max(1, band_bytes // row_bytes(segmentation, return_logits))
    for start in range(0, rows, count):
        yield cut_band(segmentation, start, min(start + count, rows))


def _cut_by_objects(masks: MaskSet, return_logits: bool) -> Iterator[Part]:
    height, width = masks.image_size
    of_each = masks.num_masks // masks.num_objects
    count = max(1, PIXELS_PER_PART // (height * width * of_each))
    if return_logits:
        count = max(1, min(count, BYTES_PER_PART // (LOGITS_TEXT_BYTES * of_each)))
    for first in range(0, masks.num_objects, count):
        last = min(first + count, masks.num_objects)
        yield Part(masks.objects(first, last), first == 0, last == masks.num_objects)
