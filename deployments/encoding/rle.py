"""Masks as COCO's compressed run lengths, written by COCO's own library."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


def segmentation(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """`{"size": [h, w], "counts": "…"}`, as `pycocotools.mask.decode` reads it.

    Args:
        mask: `H×W` bool.
    """
    # COCO counts down the columns.
    rle = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
