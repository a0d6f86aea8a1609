"""Segment everything: what is asked for, and what comes out.

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
    """What to look for where nobody points at anything: a grid of points, and which of their masks to keep.

    Each field's meaning and range stand in its metadata, since the HTTP form and the README tell them too.

    Raises:
        InvalidPrompt: a value is out of range; the message names it.
    """

    points_per_side: int = _option(32, 1, 256, "Points along each side of the grid.")
    points_per_batch: int = _option(64, 1, 1024, "At most so many points are decoded together.")
    pred_iou_thresh: float = _option(0.8, 0, 1, "Keeps masks whose predicted IoU is above it; 0 keeps all.")
    stability_score_thresh: float = _option(
        0.95,
        0,
        1,
        "Keeps masks that hardly change when the threshold of their logits does: whose IoU is at least this.",
    )
    stability_score_offset: float = _option(1.0, 0, 100, "How far the threshold is shifted for that, up and down.")
    box_nms_thresh: float = _option(0.7, 0, 1, "Of masks whose boxes overlap more than this (IoU), keeps the best.")
    crop_n_layers: int = _option(0, 0, 4, "Segments crops of the image too: layer i has 2^i × 2^i of them.")
    crop_nms_thresh: float = _option(0.7, 0, 1, "As box_nms_thresh, between masks of different crops.")
    crop_overlap_ratio: float = _option(
        512 / 1500, 0, 0.9, "How far crops of the first layer overlap, as a fraction of the image's shorter side."
    )
    crop_n_points_downscale_factor: int = _option(
        1, 1, 16, "Layer i has points_per_side divided by the i-th power of this."
    )
    min_mask_region_area: int = _option(
        0, 0, 65_535, "Removes smaller islands and fills smaller holes; in pixels of the 256×256 mask, as SAM 2 counts."
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
            # Of any number type, numpy's among them.
            object.__setattr__(self, option.name, kind(value))
        if self.points_in_layer(self.crop_n_layers) < 1:
            raise InvalidPrompt("crop_n_points_downscale_factor: leaves no points for the smallest crops")

    @property
    def num_crops(self) -> int:
        """Crops of all layers together, the whole image among them: runs of the image encoder."""
        return sum(4**layer for layer in range(self.crop_n_layers + 1))

    @property
    def num_points(self) -> int:
        """Points of all crops' grids together."""
        return sum(4**layer * self.points_in_layer(layer) ** 2 for layer in range(self.crop_n_layers + 1))

    def points_in_layer(self, layer: int) -> int:
        """Points along each side of the grid in each crop of a layer."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)


@dataclass(frozen=True, eq=False)
class AutomaticMasks:
    """The masks of everything in an image, kept small, in the order that SAM 2's generator gives them.

    Attributes:
        image_id: digest of the image.
        model_id: the model that did it.
        image_size: height and width of the image in pixels.
        low_res_logits: `K×256×256` float32, not clamped, each of its crop.
        predicted_iou: `K` float32.
        stability_score: `K` float32: IoU of the mask at a higher and at a lower threshold.
        point_coords: `K×2` float32, XY in pixels: the point of the grid that the mask comes from.
        crop_boxes: `K×4` int32, XYXY in pixels: the crop that it comes from.
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
        """K."""
        return len(self.predicted_iou)

    @property
    def num_objects(self) -> int:
        """K: each mask is one object."""
        return self.num_masks

    def mask(self, index: int) -> NDArray[np.bool_]:
        """`H×W` bool, at the image's size."""
        left, top, right, bottom = self.crop_boxes[index]
        mask = np.zeros(self.image_size, np.bool_)
        mask[top:bottom, left:right] = upsample(self.low_res_logits[index], (bottom - top, right - left)) > 0
        return mask

    def masks(self) -> NDArray[np.bool_]:
        """`K×H×W` bool, at the image's size."""
        masks = np.empty(self.masks_shape, np.bool_)
        for index in range(self.num_masks):
            masks[index] = self.mask(index)
        return masks

    @property
    def masks_shape(self) -> tuple[int, ...]:
        """K, H, W."""
        return (self.num_masks, *self.image_size)

    def facts(self, index: int) -> dict[str, Any]:
        """What SAM 2's generator says of a mask, beside its area and box."""
        left, top, right, bottom = self.crop_boxes[index].tolist()
        return {
            "predicted_iou": self.predicted_iou[index],
            "stability_score": self.stability_score[index],
            "point_coords": [self.point_coords[index]],
            "crop_box": [left, top, right - left, bottom - top],
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `facts` says of each mask, for all of them; crop boxes are XYWH."""
        left, top, right, bottom = self.crop_boxes.T
        return {
            "predicted_iou": self.predicted_iou,
            "stability_score": self.stability_score,
            "point_coords": self.point_coords,
            "crop_boxes": np.stack([left, top, right - left, bottom - top], axis=1),
        }

    @property
    def logits(self) -> FloatArray:
        """`K×256×256` float32 in [-32, 32], each of its crop."""
        return self.low_res_logits.clip(-LOGIT_LIMIT, LOGIT_LIMIT)

    def objects(self, first: int, last: int) -> "AutomaticMasks":
        """Some of the masks."""
        rows = slice(first, last)
        # A copy: of a slice, Ray would send what it is a slice of.
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

    def shown(self, mask_index: int | None) -> None:
        """None: an image shows all of the masks, as labels."""

    def grouped(self, records: list[Any]) -> list[Any]:
        """A record for each mask."""
        return records

    def check_format(self, answer_format: AnswerFormat) -> None:
        """Rejects what is for the masks of one prompt only.

        Raises:
            InvalidRequest: it is.
        """
        if answer_format.traits.is_full_text or answer_format.mask_index is not None:
            raise InvalidRequest("answer_format: json and mask_index are for the masks of one prompt")
