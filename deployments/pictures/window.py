"""The one rule by which samples of any type become 8-bit ones: 8 bits stay, others are shown in a robust window.

- uint8 samples stay as they are; bool becomes 0 and 255.
- Of any other type, the window reaches from the 0.1 % to the 99.9 % quantile of the picture's own values. NaN, infinite
  values and pixels without data do not count, nor do values beyond ±1e36, and the usual marks for no data (-9999 and
  its like) where they lie further from all other values than these spread. If both quantiles are one value, the window
  reaches from the lowest to the highest. All channels share one window, so that hue is kept.
- Unsigned integers that use much of their range are photographs, whose brightness means something. A window of at least
  half of the range becomes the whole range; between a quarter and a half it is widened in proportion, so that two
  pictures that hardly differ look alike.
- A value v becomes 255 (v - low) / (high - low), rounded half up and clipped to 0 … 255.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.messages.arrays import RgbArray
from deployments.messages.picture_options import Window
from deployments.pictures.raster import Picture, Raster, Samples

LOW_QUANTILE, HIGH_QUANTILE = 0.001, 0.999

# Shares of an unsigned type's range: up to the first a window stays, from the second on it is the whole range.
STAYS, WHOLE = 0.25, 0.5

# Larger floats are formats' marks for no data: -3.4e38 (GDAL), 9.97e36 (netCDF).
LARGEST = 1e36

# Marks for no data that files often hold without saying so.
NO_DATA = (-9999.0, -99999.0, -32767.0, -32768.0)

# Of larger pictures, only so many pixels are looked at where a histogram of all values would be too long.
MOST_LOOKED_AT = 2**22
FEWEST_LOOKED_AT = 10_000

BLOCK = 2**20
"""Samples that are computed at a time, in float64: this bounds the memory."""


def shown(raster: Raster, window: Window, background: tuple[int, int, int]) -> Picture:
    """Returns a raster as 8-bit RGB.

    Args:
        raster: the samples.
        window: see PictureOptions.
        background: the colour behind transparent pixels.
    """
    samples = raster.samples
    valid = raster.valid
    alpha = samples[:, :, 3] if samples.shape[2] == 4 else None
    colours = samples[:, :, :3]
    if alpha is not None:
        opaque = alpha > 0
        valid = opaque if valid is None else valid & opaque
    bounds = _bounds(colours, valid, raster, window)
    pixels = _eight_bit(colours, bounds)
    if raster.inverted:
        np.subtract(255, pixels, out=pixels)
    if bounds is not None and raster.valid is not None:
        pixels[~raster.valid] = 0
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if alpha is not None:
        pixels = _composed(pixels, alpha, _highest(raster), background)
    return Picture(np.ascontiguousarray(pixels), None if _is_plain(raster, window) else bounds)


def robust_window(
    samples: Samples, valid: NDArray[np.bool_] | None = None, full: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Returns the values that become black and white if nobody says which; low is always below high.

    Args:
        samples: `H×W×C`, of any type but complex.
        valid: `H×W`, the pixels that count; None is all.
        full: the lowest and the highest value that a sample may have; None is the type's.
    """
    is_short = samples.dtype.kind in "iu" and samples.dtype.itemsize <= 2
    low, high = _range_of_levels(samples, valid) if is_short else _range_of_values(samples, valid)
    if low == high:
        return _around(low)
    whole = full or _type_range(samples.dtype)
    if samples.dtype.kind != "u" or whole is None:
        return low, high
    share = (high - low) / (whole[1] - whole[0])
    weight = min(max((share - STAYS) / (WHOLE - STAYS), 0.0), 1.0)
    return low + weight * (whole[0] - low), high + weight * (whole[1] - high)


# ---- the window


def _is_plain(raster: Raster, window: Window) -> bool:
    """Returns whether the samples have 8 bits or fewer, and are shown as they are."""
    return raster.samples.dtype in (np.uint8, np.bool_) and isinstance(window, str)


def _bounds(
    colours: Samples, valid: NDArray[np.bool_] | None, raster: Raster, window: Window
) -> tuple[float, float] | None:
    """Returns the window; None if the samples are the pixels."""
    if not isinstance(window, str):
        return window
    if _is_plain(raster, window):
        # Samples of 1, 2 or 4 bits use the whole range, too.
        return raster.full or ((0.0, 1.0) if colours.dtype == np.bool_ else None)
    if window == "full":
        whole = raster.full or (_type_range(colours.dtype) if colours.dtype.itemsize <= 2 else None)
        return whole or _extremes(colours, valid)
    return raster.window or robust_window(colours, valid, raster.full)


def _type_range(kind: np.dtype[Any]) -> tuple[float, float] | None:
    return (float(np.iinfo(kind).min), float(np.iinfo(kind).max)) if kind.kind in "iu" else None


def _highest(raster: Raster) -> float:
    """Returns the value of alpha that is opaque."""
    whole = raster.full or _type_range(raster.samples.dtype)
    return whole[1] if whole else 1.0


def _range_of_levels(samples: Samples, valid: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Returns the quantiles of integers of up to 16 bits, by a histogram of all of them."""
    lowest = int(np.iinfo(samples.dtype).min)
    counts = np.zeros(2 ** (8 * samples.dtype.itemsize), np.int64)
    for rows in _blocks(samples):
        block = samples[rows] if valid is None else samples[rows][valid[rows]]
        counts += np.bincount(block.ravel().astype(np.intp) - lowest, minlength=len(counts))
    levels = np.flatnonzero(counts)
    if len(levels) and levels[0] + lowest in NO_DATA and len(levels) > 1:
        low, high = _quantiles_of_counts(counts, 1 + int(levels[0]))
        if low - levels[0] > high - low:
            return low + lowest, high + lowest
    low, high = _quantiles_of_counts(counts, 0)
    if low == high and len(levels):
        low, high = levels[0], levels[-1]
    return float(low + lowest), float(high + lowest)


def _quantiles_of_counts(counts: NDArray[np.int64], start: int) -> tuple[int, int]:
    """Returns the indices of the quantiles in a histogram, those before `start` left out; of nothing, zeros."""
    below = np.cumsum(counts[start:])
    ranks = _ranks(int(below[-1])) if len(below) else (-1, -1)
    if ranks[0] < 0:
        return 0, 0
    low, high = (start + int(np.searchsorted(below, rank, side="right")) for rank in ranks)
    return low, high


def _range_of_values(samples: Samples, valid: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Returns the quantiles of long integers and floats; of a large picture, of pixels that lie evenly in it."""
    values = _usable(samples, valid)
    if not len(values):
        return 0.0, 0.0
    least = float(values.min())
    if least in NO_DATA:
        others = values[values != least]
        if len(others):
            low, high = _quantiles(others)
            if low - least > high - low:
                return low, high
    low, high = _quantiles(values)
    if low == high:
        low, high = least, float(values.max())
    return low, high


def _usable(samples: Samples, valid: NDArray[np.bool_] | None) -> NDArray[Any]:
    height, width, channels = samples.shape
    flat, flat_valid = samples.reshape(height * width, channels), None if valid is None else valid.reshape(-1)
    step = _step(height * width, width)
    values = _finite(flat[::step], None if flat_valid is None else flat_valid[::step])
    return values if step == 1 or len(values) >= FEWEST_LOOKED_AT else _finite(flat, flat_valid)


def _step(pixels: int, width: int) -> int:
    """Returns how many pixels lie from one that counts to the next: no divisor of the width, which would be columns."""
    step = max(1, math.ceil(pixels / MOST_LOOKED_AT))
    while math.gcd(step, width) > 1:
        step += 1
    return step


def _finite(pixels: Samples, valid: NDArray[np.bool_] | None) -> NDArray[Any]:
    values = (pixels if valid is None else pixels[valid]).ravel()
    if values.dtype.kind == "f":
        # NaN compares as false. float16 reaches to 65504 only.
        with np.errstate(invalid="ignore"):
            most = LARGEST if values.dtype.itemsize > 2 else np.inf
            values = values[np.abs(values) < values.dtype.type(most)]
    return values


def _quantiles(values: NDArray[Any]) -> tuple[float, float]:
    low, high = _ranks(len(values))
    parted = np.partition(values, [low, high])
    return float(parted[low]), float(parted[high])


def _ranks(count: int) -> tuple[int, int]:
    """Returns the positions of the quantiles among that many sorted values: the nearest outwards."""
    return math.floor(LOW_QUANTILE * (count - 1)), math.ceil(HIGH_QUANTILE * (count - 1))


def _extremes(samples: Samples, valid: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Returns the lowest and the highest value that counts."""
    low, high = math.inf, -math.inf
    for rows in _blocks(samples):
        height, width, channels = samples[rows].shape
        flat_valid = None if valid is None else valid[rows].reshape(-1)
        values = _finite(samples[rows].reshape(height * width, channels), flat_valid)
        if len(values):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low < high else _around(low if low == high else 0.0)


def _around(value: float) -> tuple[float, float]:
    """Returns a window for a picture of one value, which is shown as middle grey."""
    reach = max(0.5, abs(value) * 1e-6)
    return value - reach, value + reach


# ---- the pixels


def _blocks(samples: Samples) -> Iterator[slice]:
    """Returns the rows that are computed at a time."""
    height, width, channels = samples.shape
    rows = max(1, BLOCK // (width * channels))
    return (slice(start, start + rows) for start in range(0, height, rows))


def _eight_bit(colours: Samples, bounds: tuple[float, float] | None) -> RgbArray:
    """Returns samples in a window as `H×W×C` uint8."""
    if bounds is None:
        return np.array(colours, np.uint8)
    pixels = np.empty(colours.shape, np.uint8)
    is_short = colours.dtype.kind in "iu" and colours.dtype.itemsize <= 2
    if is_short:
        # The levels in the order of their bits: the negative ones come last.
        unsigned = np.dtype(f"u{colours.dtype.itemsize}")
        levels = np.arange(2 ** (8 * colours.dtype.itemsize)).astype(unsigned).view(colours.dtype)
        table = _scaled(levels, bounds)
    for rows in _blocks(colours):
        block = np.ascontiguousarray(colours[rows])
        pixels[rows] = table[block.view(unsigned)] if is_short else _scaled(block, bounds)
    return pixels


def _scaled(values: Samples, bounds: tuple[float, float]) -> RgbArray:
    low, high = bounds
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (values.astype(np.float64) - low) * 255 / (high - low) + 0.5
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return scaled.clip(0, 255).astype(np.uint8)


def _composed(pixels: RgbArray, alpha: Samples, opaque: float, background: tuple[int, int, int]) -> RgbArray:
    """Returns the pixels over a background; those that are opaque stay as they are."""
    behind = np.array(background, np.float32)
    for rows in _blocks(pixels):
        share = (np.nan_to_num(alpha[rows].astype(np.float32)) / opaque).clip(0, 1)[:, :, None]
        pixels[rows] = np.rint(behind + share * (pixels[rows] - behind)).astype(np.uint8)
    return pixels
