"""Writes Label Studio's tasks, as its import takes them: one task with a prediction, of brush strokes or of polygons.

The regions belong to the tags `<BrushLabels name="brush" toName="image">` and `<PolygonLabels name="polygon"
toName="image">` of a labelling interface whose picture is `<Image name="image" value="$image">`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.encoding.objects import MaskedObject, json_text, objects_of, runs_of, tolerance_of
from deployments.encoding.rings import edge_rings
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.mask_set import MaskSet
from deployments.messages.pieces import Part

CHANNELS = 4
WORD_BITS = 8
SIZES = (3, 4, 8, 16)
"""Bits of the length of a run: each run uses the smallest that holds it."""

LONGEST_RUN = 2 ** SIZES[-1]
DECIMALS = 6
"""Of coordinates in percent: a hundredth of a pixel in the largest images."""


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """A task whose prediction has a brush region for each object."""
    label = answer_format.shown_label
    regions: list[dict[str, Any]] = []
    for one in objects_of(part):
        value = {"format": "rle", "rle": brush(one.mask), "brushlabels": [label]}
        regions += _regions(part.masks, one, "brush", [value])
    return _task(part, answer_format, regions)


def write_polygons(part: Part, answer_format: AnswerFormat) -> bytes:
    """A task whose prediction has a polygon for each region of each object's mask."""
    height, width = part.masks.image_size
    label, tolerance = answer_format.shown_label, tolerance_of(answer_format)
    regions: list[dict[str, Any]] = []
    for one in objects_of(part):
        rings = edge_rings(one.mask, tolerance)
        shares = [(100 * ring / (width, height)).round(DECIMALS) for ring in rings]
        values = [{"points": points, "closed": True, "polygonlabels": [label]} for points in shares]
        regions += _regions(part.masks, one, "polygon", values)
    return _task(part, answer_format, regions)


def _task(part: Part, answer_format: AnswerFormat, regions: list[dict[str, Any]]) -> bytes:
    prediction: dict[str, Any] = {"model_version": part.masks.model_id, "result": regions}
    if regions:
        prediction["score"] = max(region["score"] for region in regions)
    return json_text([{"data": {"image": answer_format.shown_file_name}, "predictions": [prediction]}])


def _regions(masks: MaskSet, one: MaskedObject, tool: str, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    height, width = masks.image_size
    digest = one.digest(masks.image_id)[:10]
    return [
        {
            "id": f"{digest}-{index}",
            "type": f"{tool}labels",
            "from_name": tool,
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": one.score,
            "value": value,
        }
        for index, value in enumerate(values)
    ]


def brush(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns a mask as Label Studio's run lengths, in bytes.

    What is packed is a picture of the mask, row by row, each pixel as four values (red, green, blue, alpha) of 0 or
    255. First come 32 bits for the number of values, 5 for the bits of a value less 1, and 4 for each of `SIZES` less
    1. Then come the runs, each with a 1, 2 bits for the index of a size, its length less 1 in so many bits, and its
    value.

    Args:
        mask: `H×W` bool.
    """
    lengths = CHANNELS * runs_of(mask)
    values = np.where(np.arange(len(lengths)) % 2 == 1, np.uint64(255), np.uint64(0))
    pieces = -(-lengths // LONGEST_RUN)
    values = np.repeat(values, pieces)
    is_last = np.cumsum(pieces)[pieces > 0] - 1
    cut = np.full(len(values), LONGEST_RUN)
    cut[is_last] = (lengths - (pieces - 1) * LONGEST_RUN)[pieces > 0]
    size = np.searchsorted(2 ** np.array(SIZES), cut)
    size_bits = np.array(SIZES)[size]
    words = (np.uint64(0b100) + size.astype(np.uint64)) << size_bits.astype(np.uint64)
    words = ((words + (cut - 1).astype(np.uint64)) << np.uint64(WORD_BITS)) + values
    head = [(CHANNELS * mask.size, 32), (WORD_BITS - 1, 5), *((size - 1, 4) for size in SIZES)]
    numbers = np.concatenate([np.array([number for number, _ in head], np.uint64), words])
    return packed(numbers, np.concatenate([[width for _, width in head], 3 + size_bits + WORD_BITS]))


def packed(numbers: NDArray[np.uint64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Writes numbers one after the other, each in so many bits, the highest bit first; zeros fill the last byte.

    Args:
        numbers: `n` uint64.
        widths: `n`: bits of each number.
    """
    ends = np.cumsum(widths)
    bits = np.zeros(int(ends[-1]), np.uint8)
    # Bit by bit over all numbers, from the lowest: no number has more than some tens.
    for place in range(int(widths.max())):
        has_it = widths > place
        bits[ends[has_it] - 1 - place] = (numbers[has_it] >> np.uint64(place)) & np.uint64(1)
    return np.packbits(bits)
