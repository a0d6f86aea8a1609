"""Raster: a picture as its file holds it, before its samples become 8-bit ones; Picture: what becomes of it."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deployments.errors import InvalidRequest
from deployments.messages.arrays import RgbArray

Samples: TypeAlias = NDArray[Any]
"""`H×W×C`, of any numeric type."""


@dataclass(frozen=True, eq=False)
class Raster:
    """A picture's samples, upright.

    Attributes:
        samples: `H×W×C` of any numeric type: 1 grey, 2 grey and alpha, 3 red, green and blue, 4 these and
            alpha (0 is transparent, the end of `full` or of the type opaque, 1 for floats), not premultiplied.
        valid: `H×W`, False where the picture has no data; None if it has data everywhere. These pixels do not count for
            the window, and are black unless the samples have 8 bits.
        window: the values that the file itself says are to be black and white.
        inverted: whether the lowest value is white.
        description: what the file is, for messages: `TIFF, 3 bands of uint16`.
        full: the lowest and highest value that a sample may have, if these are not the type's.
        is_chosen: whether the samples are already those of the `bands` that were asked for.
    """

    samples: Samples
    valid: NDArray[np.bool_] | None = None
    window: tuple[float, float] | None = None
    inverted: bool = False
    description: str = ""
    full: tuple[float, float] | None = None
    is_chosen: bool = False


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as a model sees it.

    Attributes:
        pixels: `H×W×3` uint8 RGB, C-contiguous.
        window: the values that are black and white; None if the file's samples of 8 bits are shown as they are.
    """

    pixels: RgbArray
    window: tuple[float, float] | None = None


def choose_bands(bands: tuple[int, ...] | None, count: int, description: str) -> list[int]:
    """Returns the indices, counted from 0, of the bands that are shown: one or three.

    Args:
        bands: the bands that were asked for, counted from 1; None is the first three, or the first of fewer.
        count: how many bands there are.
        description: what the file is, for the message.

    Raises:
        InvalidRequest: there is no such band.
    """
    if bands is None:
        return [0, 1, 2] if count >= 3 else [0]
    if max(bands) > count:
        raise InvalidRequest(f"bands: asks for band {max(bands)} of {count}; the image is {description}")
    return [band - 1 for band in bands]


def bands_text(count: int, kind: object) -> str:
    """Describes samples: `5 bands of complex64`."""
    return f"{count} band{'s' if count != 1 else ''} of {kind}"
