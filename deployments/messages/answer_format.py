"""AnswerFormat: how an answer is written."""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal, TypeAlias, get_args

from deployments.errors import InvalidRequest, TooLarge
from deployments.messages.georeference import Georeference, NoGeoreference
from deployments.messages.names import check_name, name_of_upload

AutomaticFormat: TypeAlias = Literal[
    "rle",
    "polygons",
    "png",
    "npz",
    "coco",
    "coco_rle",
    "coco_results",
    "cvat",
    "labelstudio",
    "labelstudio_polygons",
    "labelme",
    "labelme_polygons",
    "yolo",
    "qupath",
    "davis",
    "napari",
    "geotiff",
]
"""Formats for the masks of everything. Not `json`: its size depends on the number of masks, not known beforehand."""

ResponseFormat: TypeAlias = Literal["json", AutomaticFormat]

VideoFormat: TypeAlias = Literal["rle", "polygons", "png", "none"]
"""Formats for the masks of a video: `png` is a zip of label images, `none` has boxes and scores only."""

VIDEO_FORMATS: tuple[VideoFormat, ...] = get_args(VideoFormat)

RESPONSE_FORMATS: tuple[ResponseFormat, ...] = get_args(ResponseFormat)

Coordinates: TypeAlias = Literal["pixels", "map"]
"""Of polygons: in pixels, or longitudes and latitudes in WGS 84."""

Option: TypeAlias = Literal["tolerance", "coordinates", "mask_index", "label", "file_name"]
"""Options that only some formats have."""


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
        one_mask_an_object: whether an answer holds one mask of each object, the best, and leaves out empty ones; or
            the single one that `mask_index` names. So it is in the formats of other tools.
        holds_logits: whether an answer can hold low-resolution logits.
        options: those of AnswerFormat's options that say something in this format.
        suffix: of the file that a browser saves; "" where the answer does not propose a name.
        max_objects: how many objects the format can number; None if there is no limit.
        is_georeferenced: whether an answer lies on a map, and so needs the picture's place there.
    """

    media_type: str
    cut_by: Literal["rows", "objects", "nothing"] = "nothing"
    shrinks: bool = False
    is_full_text: bool = False
    holds_one_mask: bool = False
    one_mask_an_object: bool = False
    holds_logits: bool = False
    options: frozenset[Option] = frozenset()
    suffix: str = ""
    max_objects: int | None = None
    is_georeferenced: bool = False


def _tool(media_type: str, suffix: str, *options: Option, **traits: Any) -> Traits:
    """The traits of a tool's format: its text shrinks."""
    return Traits(
        media_type,
        shrinks=True,
        one_mask_an_object=True,
        options=frozenset(("mask_index", "file_name", *options)),
        suffix=suffix,
        **traits,
    )


JSON = "application/json"

TRAITS: dict[ResponseFormat, Traits] = {
    "json": Traits(JSON, cut_by="rows", shrinks=True, is_full_text=True, holds_logits=True),
    "rle": Traits(JSON, cut_by="objects", holds_logits=True),
    "polygons": Traits(
        JSON, cut_by="objects", shrinks=True, holds_logits=True, options=frozenset({"tolerance", "coordinates"})
    ),
    "png": Traits("image/png", holds_one_mask=True, options=frozenset({"mask_index"})),
    "npz": Traits("application/zip", holds_logits=True),
    "coco": _tool(JSON, ".json", "tolerance", "label"),
    "coco_rle": _tool(JSON, ".json", "label"),
    "coco_results": _tool(JSON, ".json"),
    "cvat": _tool("application/xml", ".xml", "label", cut_by="objects"),
    "labelstudio": _tool(JSON, ".json", "label"),
    "labelstudio_polygons": _tool(JSON, ".json", "tolerance", "label"),
    "labelme": _tool(JSON, ".json", "label"),
    "labelme_polygons": _tool(JSON, ".json", "tolerance", "label"),
    "yolo": _tool("text/plain", ".txt", "tolerance", cut_by="objects"),
    "qupath": _tool("application/geo+json", ".geojson", "tolerance", "label"),
    "davis": replace(_tool("image/png", ".png", max_objects=255), shrinks=False),
    "napari": replace(_tool("image/tiff", ".tif", max_objects=65_535), shrinks=False),
    "geotiff": replace(_tool("image/tiff", ".tif", max_objects=65_535, is_georeferenced=True), shrinks=False),
}

MAX_TOLERANCE = 100.0

DEFAULT_LABEL = "object"
DEFAULT_FILE_NAME = "image"


@dataclass(frozen=True)
class AnswerFormat:
    """How to write an answer.

    Attributes:
        response_format: `json`: the contract's format. `rle`: COCO's compressed run lengths. `polygons`: GeoJSON.
            `png`: one mask as an image, or all automatic masks in one label image. `npz`: numpy's archive. The others
            are files of annotation tools, with one mask for each object: see docs/formats.md.
        return_logits: whether the masks of `json` are un-thresholded floats, not 0 and 1. For `rle`, `polygons` and
            `npz`, whether the answer also holds low-resolution logits.
        tolerance: for formats of polygons, how many pixels a contour may be away from the mask's own contour, from 0 to
            100; None is 1 for `polygons`, and 0 for the others.
        mask_index: for `png` and the formats of tools, the index of the only mask that is written, numbered over all
            objects and their candidates; None is the best, of the formats of tools the best of each object.
        label: the category of the objects, in the formats that name it; None is `object`.
        file_name: for the formats of tools, the name of the image's file; None is `image`. Some hold it, and the
            answer's own name is made of it.
        coordinates: for `polygons`, `map` for longitudes and latitudes in WGS 84; None is `pixels`.
        georeference: where the picture lies, for answers that need it: see `placed`.

    Raises:
        InvalidRequest: an option is out of range, or does not apply to this format.
    """

    response_format: ResponseFormat = "json"
    return_logits: bool = False
    tolerance: float | None = None
    mask_index: int | None = None
    label: str | None = None
    file_name: str | None = None
    coordinates: Coordinates | None = None
    georeference: Georeference | None = None

    def __post_init__(self) -> None:
        name = self.response_format
        if name not in RESPONSE_FORMATS:
            raise InvalidRequest(f"response_format: must be one of {', '.join(RESPONSE_FORMATS)}")
        for option in get_args(Option):
            if getattr(self, option) is not None and option not in self.traits.options:
                takers = ", ".join(taker for taker, traits in TRAITS.items() if option in traits.options)
                raise InvalidRequest(f"{option}: is for response_format {takers}, not for {name}")
        if self.coordinates not in (None, *get_args(Coordinates)):
            raise InvalidRequest(f"coordinates: must be {' or '.join(get_args(Coordinates))}")
        _check_tolerance(self.tolerance)
        check_name("label", self.label)
        check_name("file_name", self.file_name)
        if self.return_logits and not self.traits.holds_logits:
            raise InvalidRequest(f"return_logits: {name} holds no logits; response_format npz can hold them")

    @property
    def traits(self) -> Traits:
        """Properties of the format that the rest of the service must know."""
        return TRAITS[self.response_format]

    @property
    def shown_label(self) -> str:
        """The category that is written."""
        return self.label or DEFAULT_LABEL

    @property
    def shown_file_name(self) -> str:
        """The name of the image's file that is written."""
        return self.file_name or DEFAULT_FILE_NAME

    def for_upload(self, file_name: str | None) -> "AnswerFormat":
        """Returns this format with the name of the file that was uploaded, where no other name was asked for.

        Args:
            file_name: as the client sent it; None if no file was uploaded.
        """
        if self.file_name is not None or "file_name" not in self.traits.options:
            return self
        return replace(self, file_name=name_of_upload(file_name or ""))

    @property
    def is_on_map(self) -> bool:
        """Whether polygons are in longitudes and latitudes."""
        return self.coordinates == "map"

    @property
    def is_georeferenced(self) -> bool:
        """Whether the answer needs the picture's place on a map."""
        return self.is_on_map or self.traits.is_georeferenced

    def check_place(self) -> None:
        """Rejects a format whose answer needs the picture's place, and that does not have it.

        Raises:
            InvalidRequest: there is no `georeference`.
        """
        if self.is_georeferenced and self.georeference is None:
            raise InvalidRequest(f"georeference: is missing; response_format {self.response_format} needs it here")

    def placed(self, place: Georeference | NoGeoreference) -> "AnswerFormat":
        """Returns this format with the picture's place on a map, where the answer needs it.

        Args:
            place: what is known of it.

        Raises:
            InvalidRequest: it is not known, or cannot be brought to WGS 84.
        """
        if not self.is_georeferenced:
            return self
        asked = "coordinates: map" if self.is_on_map else f"response_format: {self.response_format}"
        if isinstance(place, NoGeoreference):
            raise InvalidRequest(f"{asked} needs a georeferenced image; {place.reason}")
        if self.is_on_map and not place.has_wgs84:
            raise InvalidRequest(f"{asked} is in WGS 84, to which the image's own coordinates cannot be brought")
        return replace(self, georeference=place)

    def num_masks(self, num_objects: int, num_masks: int) -> int:
        """Returns how many masks an answer holds, of so many objects that have so many masks together."""
        if self.traits.holds_one_mask or (self.traits.one_mask_an_object and self.mask_index is not None):
            return 1
        return num_objects if self.traits.one_mask_an_object else num_masks

    def check_index(self, num_masks: int) -> None:
        """Rejects a `mask_index` that is not from 0 to `num_masks - 1`.

        Raises:
            InvalidRequest: `mask_index` is out of range.
        """
        if self.mask_index is not None and not 0 <= self.mask_index < num_masks:
            raise InvalidRequest(f"mask_index: must be from 0 to {num_masks - 1}, is {self.mask_index}")

    def check_objects(self, num_objects: int) -> None:
        """Rejects more objects than the format can number.

        Raises:
            TooLarge: there are too many objects.
        """
        limit = self.traits.max_objects
        if limit is not None and self.mask_index is None and num_objects > limit:
            raise TooLarge(
                f"response_format: {self.response_format} can number {limit} objects, and there are {num_objects}"
            )


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
        if self.tolerance is not None and self.response_format != "polygons":
            raise InvalidRequest(f"tolerance: is for response_format polygons, not for {self.response_format}")
        _check_tolerance(self.tolerance)
        if self.return_logits and self.response_format == "png":
            raise InvalidRequest("return_logits: a png holds no logits; response_format rle can hold them")


def _check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not (isfinite(tolerance) and 0 <= tolerance <= MAX_TOLERANCE):
        raise InvalidRequest(f"tolerance: must be from 0 to {MAX_TOLERANCE:g} pixels, is {tolerance:g}")
