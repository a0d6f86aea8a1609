"""Upsamples low-resolution logits to rows of full-size masks, in numpy.

Computes the same numbers as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, which SAM 2's
predictor uses, but for any band of rows by itself and without torch, so that neither the replicas that parse and encode
nor programs that call a handle have to import torch.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def _source_positions(size: int, source_size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Returns, for each of `size` output positions, its two source neighbours and the second's weight in [0, 1]."""
    # torch multiplies and subtracts in one fused float32 step. Rounding once, from float64, gives the same positions;
    # rounding twice would move them by up to 1.5e-5 of a source pixel, and change steep logits by up to 4e-4.
    scale = np.float64(np.float32(source_size) / np.float32(size))
    positions = ((np.arange(size) + 0.5) * scale - 0.5).astype(np.float32)
    positions = np.maximum(positions, np.float32(0))
    first = np.minimum(positions.astype(np.intp), source_size - 1)
    second = np.minimum(first + 1, source_size - 1)
    return first, second, (positions - first).astype(np.float32)


def source_rows(height: int, source_height: int, start: int, stop: int) -> tuple[int, int]:
    """Returns the first and one past the last source row that output rows `start` to `stop` are interpolated from."""
    top, bottom, _ = _source_positions(height, source_height)
    return int(top[start]), int(bottom[stop - 1]) + 1


def upsample_rows(
    low_res: NDArray[np.float32],
    size: tuple[int, int],
    start: int,
    stop: int,
    source_height: int | None = None,
    source_start: int = 0,
) -> NDArray[np.float32]:
    """Returns rows `start` to `stop` of one mask, bilinearly interpolated to the image's size.

    Args:
        low_res: `h×w` float32 logits, or only the rows of them that `source_rows` names.
        size: height and width of the image in pixels.
        start: first row, counted in the image's pixels.
        stop: one past the last row.
        source_height: `h`, if `low_res` holds only some rows of the logits.
        source_start: the first of those rows, counted in the logits.

    Returns:
        `(stop - start)×width` float32 logits.
    """
    height, width = size
    top, bottom, vertical = _source_positions(height, source_height or low_res.shape[0])
    left, right, horizontal = _source_positions(width, low_res.shape[1])
    weight = vertical[start:stop, None]
    rows = low_res[top[start:stop] - source_start] * (1 - weight) + low_res[bottom[start:stop] - source_start] * weight
    upsampled = rows.take(left, axis=1)
    upsampled *= 1 - horizontal
    shifted = rows.take(right, axis=1)
    shifted *= horizontal
    upsampled += shifted
    return upsampled


def row_chunks(height: int, width: int, numbers: int) -> Iterator[tuple[int, int]]:
    """Splits `height` rows into `(start, stop)` chunks of about `numbers` values each, at least one row."""
    rows = max(1, numbers // width)
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def upsample(low_res: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Returns all masks at the image's size: upsamples `…×h×w` float32 logits to `…×height×width` float32."""
    height, width = size
    masks = np.empty((*low_res.shape[:-2], height, width), np.float32)
    for index in np.ndindex(*low_res.shape[:-2]):
        # Band by band, so that the temporaries stay in the processor's cache.
        for start, stop in row_chunks(height, width, 250_000):
            masks[index][start:stop] = upsample_rows(low_res[index], size, start, stop)
    return masks
