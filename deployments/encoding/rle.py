"""Writes masks as COCO's compressed run lengths, with COCO's own library."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from deployments.encoding.records import encode_part
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """The records of a part."""
    return encode_part(part, segmentation, answer_format.return_logits)


def segmentation(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Returns `{"size": [h, w], "counts": "…"}`, as `pycocotools.mask.decode` reads it.

    Args:
        mask: `H×W` bool.
    """
    # COCO counts along columns, hence the Fortran order.
    rle = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
