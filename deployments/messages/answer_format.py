"""AnswerFormat: how an answer is written."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeAlias, get_args

from deployments.errors import InvalidRequest

ResponseFormat: TypeAlias = Literal["json", "rle", "polygons", "png", "npz"]

AutomaticFormat: TypeAlias = Literal["rle", "polygons", "png", "npz"]
"""Formats for the masks of everything. Not `json`: its size depends on the number of masks, not known beforehand."""

VideoFormat: TypeAlias = Literal["rle", "polygons", "png", "none"]
"""Formats for the masks of a video: `png` is a zip of label images, `none` has boxes and scores only."""

VIDEO_FORMATS: tuple[VideoFormat, ...] = get_args(VideoFormat)

RESPONSE_FORMATS: tuple[ResponseFormat, ...] = get_args(ResponseFormat)


@dataclass(frozen=True)
class Traits:
    """Properties of a format that the rest of the service must know.

    Attributes:
        media_type: the Content-Type.
        cut_by: how an answer is divided among encoders: by rows of all masks, by objects, or not at all.
        shrinks: whether Content-Encoding makes an answer without logits much smaller.
        is_full_text: whether an answer holds every pixel, and low-resolution logits, as text. Only the contract's own
            format does.
        holds_one_mask: whether an answer holds a single mask of a prompt.
    """

    media_type: str
    cut_by: Literal["rows", "objects", "nothing"] = "nothing"
    shrinks: bool = False
    is_full_text: bool = False
    holds_one_mask: bool = False


TRAITS: dict[ResponseFormat, Traits] = {
    "json": Traits("application/json", cut_by="rows", shrinks=True, is_full_text=True),
    "rle": Traits("application/json", cut_by="objects"),
    "polygons": Traits("application/json", cut_by="objects", shrinks=True),
    "png": Traits("image/png", holds_one_mask=True),
    "npz": Traits("application/zip"),
}

MAX_TOLERANCE = 100.0


@dataclass(frozen=True)
class AnswerFormat:
    """How to write an answer.

    Attributes:
        response_format: `json`: the contract's format. `rle`: COCO's compressed run lengths. `polygons`: GeoJSON.
            `png`: one mask as an image, or all automatic masks in one label image. `npz`: numpy's archive.
        return_logits: whether the masks of `json` are un-thresholded floats, not 0 and 1. For other formats, whether
            the answer also holds low-resolution logits, which `png` cannot.
        tolerance: for `polygons`, how many pixels a contour may be away from the mask's own contour, from 0 to 100.
        mask_index: for `png`, the index of the mask, numbered over all objects and their candidates; None is the best.

    Raises:
        InvalidRequest: an option is out of range, or does not apply to this format.
    """

    response_format: ResponseFormat = "json"
    return_logits: bool = False
    tolerance: float | None = None
    mask_index: int | None = None

    def __post_init__(self) -> None:
        name = self.response_format
        if name not in RESPONSE_FORMATS:
            raise InvalidRequest(f"response_format: must be one of {', '.join(RESPONSE_FORMATS)}")
        _check_tolerance(self.tolerance, name)
        if self.mask_index is not None and name != "png":
            raise InvalidRequest(f"mask_index: is for response_format png, not for {name}")
        if self.return_logits and name == "png":
            raise InvalidRequest("return_logits: a png holds no logits; response_format npz can hold them")

    @property
    def traits(self) -> Traits:
        """Properties of the format that the rest of the service must know."""
        return TRAITS[self.response_format]

    def check_index(self, num_masks: int) -> None:
        """Rejects a `mask_index` that is not from 0 to `num_masks - 1`.

        Raises:
            InvalidRequest: `mask_index` is out of range.
        """
        if self.mask_index is not None and not 0 <= self.mask_index < num_masks:
            raise InvalidRequest(f"mask_index: must be from 0 to {num_masks - 1}, is {self.mask_index}")


@dataclass(frozen=True)
class TrackFormat:
    """How to write the masks of a video's frames.

    Attributes:
        response_format: `rle`, `polygons`: see AnswerFormat. `png`: a label image for each frame, with DAVIS's palette.
            `none`: no masks, but their boxes, areas and scores.
        return_logits: whether each object also has its low-resolution logits; `png` has none.
        tolerance: see AnswerFormat.
        non_overlapping: whether each pixel belongs to one object at most: that with the highest logit. Always so for
            `png`.

    Raises:
        InvalidRequest: an option is out of range, or does not apply to this format.
    """

    response_format: VideoFormat = "rle"
    return_logits: bool = False
    tolerance: float | None = None
    non_overlapping: bool = False

    def __post_init__(self) -> None:
        if self.response_format not in VIDEO_FORMATS:
            raise InvalidRequest(f"response_format: must be one of {', '.join(VIDEO_FORMATS)}")
        _check_tolerance(self.tolerance, self.response_format)
        if self.return_logits and self.response_format == "png":
            raise InvalidRequest("return_logits: a png holds no logits; response_format rle can hold them")


def _check_tolerance(tolerance: float | None, name: str) -> None:
    if tolerance is not None and name != "polygons":
        raise InvalidRequest(f"tolerance: is for response_format polygons, not for {name}")
    if tolerance is not None and not (isfinite(tolerance) and 0 <= tolerance <= MAX_TOLERANCE):
        raise InvalidRequest(f"tolerance: must be from 0 to {MAX_TOLERANCE:g} pixels, is {tolerance:g}")
