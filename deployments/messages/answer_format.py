"""AnswerFormat: how an answer is written."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeAlias, get_args

from deployments.errors import InvalidRequest
from deployments.messages.everything import AutomaticMasks
from deployments.messages.segmentation import Segmentation

ResponseFormat: TypeAlias = Literal["json", "rle", "polygons", "png", "npz"]

AutomaticFormat: TypeAlias = Literal["rle", "polygons", "png", "npz"]
"""Those of everything that is in an image: nobody knows ahead how much that will be."""

RESPONSE_FORMATS: tuple[ResponseFormat, ...] = get_args(ResponseFormat)


@dataclass(frozen=True)
class Traits:
    """What the rest of the service must know of a format.

    Attributes:
        media_type: its Content-Type.
        by_object: it is written object by object, and can be cut between them.
        shrinks: Content-Encoding makes it much smaller.
    """

    media_type: str
    by_object: bool = False
    shrinks: bool = False


TRAITS: dict[ResponseFormat, Traits] = {
    # In bands of rows, not in parts; what it shrinks to depends on its options.
    "json": Traits("application/json"),
    "rle": Traits("application/json", by_object=True),
    "polygons": Traits("application/json", by_object=True, shrinks=True),
    "png": Traits("image/png"),
    "npz": Traits("application/zip"),
}

MAX_TOLERANCE = 100.0


Masks: TypeAlias = Segmentation | AutomaticMasks


@dataclass(frozen=True)
class AnswerFormat:
    """How to write an answer.

    Attributes:
        response_format: `json`: the contract's. `rle`: COCO's compressed run lengths. `polygons`: GeoJSON. `png`: one
            mask as an image; of automatic masks, all in one label image. `npz`: numpy's archive.
        return_logits: of `json`, un-thresholded float masks. Of the others, whether the answer holds low-resolution
            logits too, which `png` cannot.
        tolerance: of `polygons`, how far in pixels a contour may be from the mask's, from 0 to 100.
        mask_index: of `png`, which mask, counted through objects and their candidates; None is the best.

    Raises:
        InvalidRequest: an option is out of range, or says nothing of this format.
    """

    response_format: ResponseFormat = "json"
    return_logits: bool = False
    tolerance: float | None = None
    mask_index: int | None = None

    def __post_init__(self) -> None:
        name = self.response_format
        if name not in RESPONSE_FORMATS:
            raise InvalidRequest(f"response_format: must be one of {', '.join(RESPONSE_FORMATS)}")
        if self.tolerance is not None and name != "polygons":
            raise InvalidRequest(f"tolerance: is for response_format polygons, not for {name}")
        if self.tolerance is not None and not (isfinite(self.tolerance) and 0 <= self.tolerance <= MAX_TOLERANCE):
            raise InvalidRequest(f"tolerance: must be from 0 to {MAX_TOLERANCE:g} pixels, is {self.tolerance:g}")
        if self.mask_index is not None and name != "png":
            raise InvalidRequest(f"mask_index: is for response_format png, not for {name}")
        if self.return_logits and name == "png":
            raise InvalidRequest("return_logits: a png holds no logits; response_format npz does")

    @property
    def traits(self) -> Traits:
        """What the rest of the service must know of the format."""
        return TRAITS[self.response_format]

    def check_index(self, num_masks: int) -> None:
        """Refuses a `mask_index` that is not among so many masks.

        Raises:
            InvalidRequest: it is not.
        """
        if self.mask_index is not None and not 0 <= self.mask_index < num_masks:
            raise InvalidRequest(f"mask_index: must be from 0 to {num_masks - 1}, is {self.mask_index}")
