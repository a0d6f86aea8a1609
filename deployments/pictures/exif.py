"""The orientation that EXIF metadata ask for, and what turns pictures and samples upright; TIFF has the same."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION = 0x0112
SHORT = 3

QUARTER_TURNS = {5, 6, 7, 8}
"""The orientations that exchange width and height."""

# What turns the stored picture upright, by the values of the EXIF standard, 4.6.5.1.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda rows: rows[:, ::-1],
    3: lambda rows: rows[::-1, ::-1],
    4: lambda rows: rows[::-1],
    5: lambda rows: rows.swapaxes(0, 1),
    6: lambda rows: rows.swapaxes(0, 1)[:, ::-1],
    7: lambda rows: rows[::-1, ::-1].swapaxes(0, 1),
    8: lambda rows: rows.swapaxes(0, 1)[::-1],
}


def orientation(exif: bytes | None) -> int:
    """Returns the orientation, 1 to 8; 1, upright, if the metadata is missing, unreadable or has none.

    Args:
        exif: a TIFF structure, with or without `Exif` and two zeros in front.
    """
    tiff = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value if kind == SHORT and value in TRANSPOSITIONS else 1
    except struct.error:
        pass
    return 1


def upright(image: Image.Image, value: int) -> Image.Image:
    """Returns the picture turned and mirrored as the orientation says; the same object if it is upright."""
    return image.transpose(TRANSPOSITIONS[value]) if value in TRANSPOSITIONS else image


def upright_samples(samples: NDArray[Any], value: int) -> NDArray[Any]:
    """Returns samples, `H×W` or `H×W×C`, as they are looked at; of an unknown orientation, as they are."""
    turn = TURNS.get(value)
    return samples if turn is None else np.ascontiguousarray(turn(samples))


def upright_size(size: tuple[int, int], value: int) -> tuple[int, int]:
    """Returns width and height of a picture of that stored size once it is upright."""
    return (size[1], size[0]) if value in QUARTER_TURNS else size
