"""COCO's run lengths, read with care: pycocotools trusts its input, and would write beyond its memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import InvalidPrompt, TooLarge


def decode_rle(value: Any, max_pixels: int, field: str = "mask") -> NDArray[np.bool_]:
    """Reads a mask as COCO writes it.

    Args:
        value: `{"size": [h, w], "counts": …}`; counts are a list of run lengths, or COCO's compressed text, and go down
            the columns, beginning with a run of zeros.
        max_pixels: the largest mask that is accepted.
        field: the field's name, for messages.

    Returns:
        `h×w` bool.

    Raises:
        InvalidPrompt: it is not such a mask.
        TooLarge: the mask has too many pixels.
    """
    size, counts = (value.get("size"), value.get("counts")) if isinstance(value, dict) else (None, None)
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise InvalidPrompt(
            f'{field}: must be run lengths as COCO writes them, {{"size": [height, width], "counts": …}}'
        )
    height, width = size
    if height * width > max_pixels:
        raise TooLarge(f"{field}: has {width}×{height} pixels, more than the {max_pixels} accepted")
    if isinstance(counts, str):
        runs = _runs(counts, field)
    elif isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts):
        runs = counts
    else:
        raise InvalidPrompt(f"{field}: counts must be COCO's text or a list of whole numbers, none of them negative")
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise InvalidPrompt(f"{field}: counts cover {sum(runs)} pixels, and {width}×{height} are {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, np.array(runs, np.int64)).reshape(width, height).T


def _runs(text: str, field: str) -> list[int]:
    """Reads COCO's text: five bits a character, the lowest first; from the third on, runs are differences.

    The format is that of `rleFrString` in cocoapi's maskApi.c.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        # No run of an image that fits into memory needs more than seven characters.
        if not 0 <= bits < 64 or shift > 35:
            raise InvalidPrompt(f"{field}: counts are not COCO's compressed text")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if shift:
        raise InvalidPrompt(f"{field}: counts end within a number")
    return runs
