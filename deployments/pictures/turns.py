"""Turns samples upright, as EXIF's orientation says, which is TIFF's."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUARTER_TURNS = {5, 6, 7, 8}
"""The orientations that exchange width and height."""

TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda rows: rows[:, ::-1],
    3: lambda rows: rows[::-1, ::-1],
    4: lambda rows: rows[::-1],
    5: lambda rows: rows.swapaxes(0, 1),
    6: lambda rows: rows.swapaxes(0, 1)[:, ::-1],
    7: lambda rows: rows[::-1, ::-1].swapaxes(0, 1),
    8: lambda rows: rows.swapaxes(0, 1)[::-1],
}


def upright(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Returns samples, `H×W` or `H×W×C`, as they are looked at; of an unknown orientation, as they are."""
    turn = TURNS.get(orientation)
    return samples if turn is None else np.ascontiguousarray(turn(samples))
