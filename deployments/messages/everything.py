"""Segmenting everything: the prompt, and the masks of the answer.

Names, meanings and defaults are those of SAM 2's `SAM2AutomaticMaskGenerator`.
"""

from dataclasses import dataclass, field, fields
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import InvalidPrompt, InvalidRequest
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.arrays import LOGIT_LIMIT, FloatArray
from deployments.messages.upsampling import upsample


def _option(default: float, low: float, high: float, description: str) -> Any:
    return field(default=default, metadata={"range": (low, high), "description": description})


@dataclass(frozen=True)
class AutomaticPrompt:
    """How to segment everything: a grid of points to prompt, and thresholds for the masks to keep.

    Each field's meaning and range are in its metadata, since the HTTP form and the documentation show them too.

    Raises:
        InvalidPrompt: a value is not a number, not whole, or out of range; the message names its field.
    """

    points_per_side: int = _option(32, 1, 256, "Points along each side of the grid.")
    points_per_batch: int = _option(64, 1, 1024, "How many points are decoded together, at most.")
    pred_iou_thresh: float = _option(0.8, 0, 1, "Keeps masks whose predicted IoU is above this; 0 keeps all.")
    stability_score_thresh: float = _option(
        0.95,
        0,
        1,
        "Keeps stable masks: the IoU of the mask at a higher and at a lower threshold of the logits is at least this.",
    )
    stability_score_offset: float = _option(
        1.0, 0, 100, "How far the logits' threshold is shifted up and down for the stability score."
    )
    box_nms_thresh: float = _option(
        0.7, 0, 1, "Keeps only the best of several masks whose boxes overlap more than this (IoU)."
    )
    crop_n_layers: int = _option(0, 0, 4, "Layers of crops to segment besides the image: layer i has 2^i × 2^i crops.")
    crop_nms_thresh: float = _option(0.7, 0, 1, "Like box_nms_thresh, between masks of different crops.")
    crop_overlap_ratio: float = _option(
        512 / 1500, 0, 0.9, "How far crops of the first layer overlap, as a fraction of the image's shorter side."
    )
    crop_n_points_downscale_factor: int = _option(
        1, 1, 16, "In layer i, points_per_side is divided by the i-th power of this."
    )
    min_mask_region_area: int = _option(
        0,
        0,
        65_535,
        "Removes islands and fills holes up to this size, in pixels of the 256×256 mask, as in SAM 2.",
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value, (low, high) = getattr(self, option.name), option.metadata["range"]
            if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
                raise InvalidPrompt(f"{option.name}: must be a number")
            kind: Any = option.type
            if value != kind(value):
                raise InvalidPrompt(f"{option.name}: must be a whole number, is {float(value):g}")
            if not low <= value <= high:
                raise InvalidPrompt(f"{option.name}: must be from {low:g} to {high:g}, is {float(value):g}")
            # The value may be of any number type, including numpy's.
            object.__setattr__(self, option.name, kind(value))
        if self.points_in_layer(self.crop_n_layers) < 1:
            raise InvalidPrompt("crop_n_points_downscale_factor: leaves no points for the smallest crops")

    @property
    def num_crops(self) -> int:
        """The number of crops in all layers, including the whole image; each is a run of the image encoder."""
        return sum(4**layer for layer in range(self.crop_n_layers + 1))

    @property
    def num_points(self) -> int:
        """The number of points in the grids of all crops together."""
        return sum(4**layer * self.points_in_layer(layer) ** 2 for layer in range(self.crop_n_layers + 1))

    def points_in_layer(self, layer: int) -> int:
        """Returns the number of points along each side of the grid in each crop of a layer."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)


@dataclass(frozen=True, eq=False)
class AutomaticMasks:
    """The masks of everything in an image, at low resolution, in the order of SAM 2's generator.

    Attributes:
        image_id: digest of the image.
        model_id: the model that segmented it.
        image_size: height and width of the image in pixels.
        low_res_logits: `K×256×256` float32, not clamped; each covers its mask's crop.
        predicted_iou: `K` float32.
        stability_score: `K` float32: IoU of the mask at a higher and at a lower threshold of the logits.
        point_coords: `K×2` float32, XY in pixels: the point of the grid that the mask comes from.
        crop_boxes: `K×4` int32, XYXY in pixels: the crop that the mask comes from.
    """

    image_id: str
    model_id: str
    image_size: tuple[int, int]
    low_res_logits: FloatArray
    predicted_iou: FloatArray
    stability_score: FloatArray
    point_coords: FloatArray
    crop_boxes: NDArray[np.int32]

    @property
    def num_masks(self) -> int:
        """K, the number of masks."""
        return len(self.predicted_iou)

    @property
    def num_objects(self) -> int:
        """K: each mask is one object."""
        return self.num_masks

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Returns one mask at the image's size, `H×W` bool."""
        left, top, right, bottom = self.crop_boxes[index]
        mask = np.zeros(self.image_size, np.bool_)
        mask[top:bottom, left:right] = upsample(self.low_res_logits[index], (bottom - top, right - left)) > 0
        return mask

    def masks(self) -> NDArray[np.bool_]:
        """Returns all masks at the image's size, `K×H×W` bool."""
        masks = np.empty(self.masks_shape, np.bool_)
        for index in range(self.num_masks):
            masks[index] = self.mask(index)
        return masks

    @property
    def masks_shape(self) -> tuple[int, ...]:
        """The shape of `masks()`: K, H, W."""
        return (self.num_masks, *self.image_size)

    def score(self, index: int) -> float:
        """Returns a mask's predicted IoU."""
        return float(self.predicted_iou[index])

    def facts(self, index: int) -> dict[str, Any]:
        """Returns the further values that SAM 2's generator reports for a mask; the crop box is XYWH."""
        left, top, right, bottom = self.crop_boxes[index].tolist()
        return {
            "predicted_iou": self.predicted_iou[index],
            "stability_score": self.stability_score[index],
            "point_coords": [self.point_coords[index]],
            "crop_box": [left, top, right - left, bottom - top],
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the values of `facts` for all masks as arrays; crop boxes are XYWH."""
        left, top, right, bottom = self.crop_boxes.T
        return {
            "predicted_iou": self.predicted_iou,
            "stability_score": self.stability_score,
            "point_coords": self.point_coords,
            "crop_boxes": np.stack([left, top, right - left, bottom - top], axis=1),
        }

    @property
    def logits(self) -> FloatArray:
        """`K×256×256` float32 in [-32, 32]; each covers its mask's crop."""
        return self.low_res_logits.clip(-LOGIT_LIMIT, LOGIT_LIMIT)

    def objects(self, first: int, last: int) -> "AutomaticMasks":
        """Returns the masks from index `first` to before `last`."""
        rows = slice(first, last)
        # Copies, since Ray would send the whole array that a slice belongs to.
        return AutomaticMasks(
            self.image_id,
            self.model_id,
            self.image_size,
            self.low_res_logits[rows].copy(),
            self.predicted_iou[rows].copy(),
            self.stability_score[rows].copy(),
            self.point_coords[rows].copy(),
            self.crop_boxes[rows].copy(),
        )

    def only(self, index: int) -> "AutomaticMasks":
        """A single mask."""
        return self.objects(index, index + 1)

    def best_of_each(self) -> "AutomaticMasks":
        """All masks: each is an object of its own."""
        return self

    def shown(self, mask_index: int | None) -> None:
        """Returns None: a label image shows all masks, not one of them."""

    def grouped(self, records: list[Any]) -> list[Any]:
        """A record for each mask."""
        return records

    def check_format(self, answer_format: AnswerFormat) -> None:
        """Rejects the format `json` and a `mask_index`, which are for the masks of one prompt only.

        Raises:
            InvalidRequest: the format is `json`, or there is a `mask_index`.
        """
        if answer_format.traits.is_full_text or answer_format.mask_index is not None:
            raise InvalidRequest("answer_format: json and mask_index are for the masks of one prompt")
