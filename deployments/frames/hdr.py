"""HDR frames in sRGB: what their samples mean, and how bright parts are toned down to what sRGB can show."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deployments.messages.arrays import FloatArray, RgbArray

Transfer: TypeAlias = Callable[[FloatArray], FloatArray]
"""Takes samples from 0 to 1 to light, where 1 is the white of paper or of a page on a screen."""

WHITE_NITS = 203.0
"""Of HDR's reference white (ITU-R BT.2408)."""

PEAK_NITS = 1000.0
"""Brighter light is shown as white. It is the peak that most HDR video is made for."""

BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""ITU-R BT.2087, for linear light."""


def _pq(samples: FloatArray) -> FloatArray:
    """SMPTE ST 2084, the perceptual quantiser."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = samples ** (1 / m2)
    light = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * (10_000 / WHITE_NITS)
    return np.asarray(light, np.float32)


def _hlg(samples: FloatArray) -> FloatArray:
    """ARIB STD-B67, hybrid log-gamma, with the system gamma of a screen of 1,000 nits, for each channel by itself."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(samples <= 0.5, samples**2 / 3, (np.exp((samples - c) / a) + b) / 12)
    return np.asarray(scene**1.2 * (PEAK_NITS / WHITE_NITS), np.float32)


TRANSFERS: dict[int, Transfer] = {16: _pq, 18: _hlg}
"""By the number of transfer characteristics in ITU-T H.273, which FFmpeg's `color_trc` is."""


def to_srgb(samples: NDArray[np.uint16], transfer: Transfer) -> RgbArray:
    """Converts an HDR frame.

    Args:
        samples: `H×W×3` uint16 RGB with BT.2020's primaries, full range.
        transfer: what samples mean.

    Returns:
        `H×W×3` uint8 sRGB.
    """
    # A sample has one of 65,536 values.
    table = transfer(np.linspace(0, 1, 65_536, dtype=np.float32))
    light = np.maximum(table[samples] @ BT2020_TO_BT709.T, 0)
    # Reinhard's curve with a white point: nearly linear in the dark, 1 at the peak.
    toned = light * (1 + light / (PEAK_NITS / WHITE_NITS) ** 2) / (1 + light)
    toned = toned.clip(0, 1)
    shown = np.where(toned <= 0.0031308, 12.92 * toned, 1.055 * toned ** (1 / 2.4) - 0.055)
    pixels: RgbArray = (shown * 255 + 0.5).astype(np.uint8)
    return pixels
