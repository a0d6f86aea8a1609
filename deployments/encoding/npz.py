"""Writes masks as a numpy archive, which `numpy.load` reads without pickle."""

import io
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """The archive of an answer; `logits` are in it if they were asked for."""
    masks = part.masks
    arrays = masks.arrays() | ({"logits": masks.logits} if answer_format.return_logits else {})
    return encode(map(masks.mask, range(masks.num_masks)), masks.masks_shape, arrays)


def encode(masks: Iterable[NDArray[np.bool_]], shape: tuple[int, ...], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns an archive with the array `masks`, bool, and further arrays.

    Masks are compressed (deflate) one after the other, so that they never exist all at once; floats, which hardly
    shrink, are stored uncompressed.

    Args:
        masks: `H×W` bool each.
        shape: of the array that the masks form together.
        arrays: the further arrays, by name.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("masks.npy", "w", force_zip64=True) as file:
            header = {"descr": "|b1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for mask in masks:
                file.write(np.ascontiguousarray(mask).data)
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
