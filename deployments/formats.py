"""In which form an answer is written, and how its writing is shared out: parts, a few objects each."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeAlias, get_args

from deployments.automatic import AutomaticMasks
from deployments.errors import InvalidRequest
from deployments.schema import Segmentation

ResponseFormat: TypeAlias = Literal["json", "rle", "polygons", "png", "npz"]

AutomaticFormat: TypeAlias = Literal["rle", "polygons", "png", "npz"]
"""Those of everything that is in an image: nobody knows ahead how much that will be."""

RESPONSE_FORMATS: tuple[ResponseFormat, ...] = get_args(ResponseFormat)

MEDIA_TYPES: dict[ResponseFormat, str] = {
    "json": "application/json",
    "rle": "application/json",
    "polygons": "application/json",
    "png": "image/png",
    "npz": "application/zip",
}

MAX_TOLERANCE = 100.0

PIXELS_PER_PART = 16_000_000
"""Of full-size masks, which an encoder holds one at a time: some tenths of a second of its work."""

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
    def media_type(self) -> str:
        """The answer's Content-Type."""
        return MEDIA_TYPES[self.response_format]

    def num_masks(self, of_prompt: int) -> int:
        """How many full-size masks an answer holds, of as many as the prompt has.

        Raises:
            InvalidRequest: `mask_index` is not among them.
        """
        if self.mask_index is not None and not 0 <= self.mask_index < of_prompt:
            raise InvalidRequest(f"mask_index: must be from 0 to {of_prompt - 1}, is {self.mask_index}")
        return 1 if self.response_format == "png" else of_prompt


@dataclass(frozen=True, eq=False)
class Part:
    """Some objects of an answer; the texts of all parts follow each other.

    Attributes:
        masks: no more of them than the part is made of.
        is_first: the text begins with them.
        is_last: the text ends with them.
    """

    masks: Masks
    is_first: bool
    is_last: bool


def cut_parts(masks: Masks, form: AnswerFormat) -> Iterator[Part]:
    """The parts of an answer: one, unless its format is written object by object."""
    if form.response_format == "png" and isinstance(masks, Segmentation):
        masks = masks.only(masks.best if form.mask_index is None else form.mask_index)
    if form.response_format in ("png", "npz") or not masks.num_objects:
        yield Part(masks, True, True)
        return
    height, width = masks.image_size
    pixels = height * width * masks.num_masks // masks.num_objects
    count = max(1, PIXELS_PER_PART // pixels)
    for first in range(0, masks.num_objects, count):
        last = min(first + count, masks.num_objects)
        yield Part(masks.objects(first, last), first == 0, last == masks.num_objects)
