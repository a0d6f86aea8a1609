"""Pictures of more than 8 bits, as cameras, scanners and satellites write them, made by code."""

import io
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

DISC = (slice(70, 110), slice(190, 230))
GROUND = (slice(150, 200), slice(180, 300))


def scene(low: float, high: float, dtype: Any) -> NDArray[Any]:
    """A 240×320 picture of values from low to high: a bright disc at (210, 90) and a dark rectangle on even ground."""
    rng = np.random.default_rng(4)
    level = 0.42 + 0.1 * np.linspace(0, 1, 320)[None, :] + rng.normal(0, 0.01, (240, 320))
    rows, columns = np.ogrid[:240, :320]
    level[(columns - 210) ** 2 + (rows - 90) ** 2 < 45**2] = 0.95
    level[140:200, 40:130] = 0.08
    values = low + (high - low) * level.clip(0, 1)
    return values.astype(dtype)


def contrast(pixels: NDArray[np.uint8]) -> float:
    """How many levels the disc is brighter than the ground."""
    return float(np.median(pixels[DISC]) - np.median(pixels[GROUND]))


def tiff(array: NDArray[Any], **options: Any) -> bytes:
    """A TIFF file of an array."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"metadata": None, "photometric": "minisblack", **options})
    return buffer.getvalue()
