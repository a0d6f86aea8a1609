"""Writes masks as COCO's compressed run lengths, with COCO's own library."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


def segmentation(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Returns `{"size": [h, w], "counts": "…"}`, as `pycocotools.mask.decode` reads it.

    Args:
        mask: `H×W` bool.
    """
    # COCO counts along columns, hence the Fortran order.
    rle = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
