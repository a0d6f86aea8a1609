"""Segmentation: the masks of one prompt."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import InvalidPrompt
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.arrays import LOGIT_LIMIT, FloatArray
from deployments.messages.upsampling import upsample


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The masks of one prompt, kept as low-resolution logits: full-size masks are computed where they are needed.

    Attributes:
        image_id: digest of the image that was segmented.
        model_id: the model that segmented it.
        image_size: height and width of the image in pixels.
        low_res_logits: `B×C×256×256` float32, not clamped, each object's masks by descending score.
        iou_predictions: `B×C` float32, the model's estimate of each mask's IoU, descending.
        has_object_axis: whether the prompt had the object axis `B`.
    """

    image_id: str
    model_id: str
    image_size: tuple[int, int]
    low_res_logits: FloatArray
    iou_predictions: FloatArray
    has_object_axis: bool

    @property
    def scores(self) -> FloatArray:
        """`C` (or `B×C`) float32: the estimated IoU of each mask."""
        return self._without_object_axis(self.iou_predictions)

    @property
    def logits(self) -> FloatArray:
        """`C×256×256` (or `B×C×256×256`) float32 in [-32, 32]: what a later prompt takes as `mask_input`."""
        return self._without_object_axis(self.low_res_logits.clip(-LOGIT_LIMIT, LOGIT_LIMIT))

    def masks(self, return_logits: bool = False) -> NDArray[Any]:
        """Computes the masks at the image's size, `C×H×W` (or `B×C×H×W`).

        Args:
            return_logits: True for float32 logits; False for bool masks, True where the logit is above 0.
        """
        masks = upsample(self._without_object_axis(self.low_res_logits), self.image_size)
        return masks if return_logits else masks > 0

    @property
    def num_objects(self) -> int:
        """The number of objects, `B`."""
        return len(self.iou_predictions)

    @property
    def num_masks(self) -> int:
        """The number of masks, `B × C`."""
        return int(self.iou_predictions.size)

    @property
    def masks_shape(self) -> tuple[int, ...]:
        """The shape of `masks()`: `C, H, W`, with `B` in front if the prompt had the object axis."""
        return (*self.scores.shape, *self.image_size)

    @property
    def best(self) -> int:
        """The index of the mask with the highest score; masks are numbered over all objects and their candidates."""
        return int(self.iou_predictions.argmax())

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Computes one mask at the image's size, `H×W` bool; see `best` for the index."""
        return upsample(self.low_res_logits[divmod(index, self.iou_predictions.shape[1])], self.image_size) > 0

    def score(self, index: int) -> float:
        """Returns a mask's score; see `best` for the index."""
        return float(self.iou_predictions.reshape(-1)[index])

    def facts(self, index: int) -> dict[str, Any]:
        """Returns the further values of a mask's record, besides its pixels, area and box: the score."""
        return {"score": self.iou_predictions.reshape(-1)[index]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the facts of all masks in one array: `{"scores": …}`, `C` (or `B×C`) float32."""
        return {"scores": self.scores}

    def objects(self, first: int, last: int) -> "Segmentation":
        """Returns objects `first` to `last` (exclusive), in memory of their own."""
        # A copy: Ray would send the whole array that a slice belongs to.
        return replace(
            self,
            low_res_logits=self.low_res_logits[first:last].copy(),
            iou_predictions=self.iou_predictions[first:last].copy(),
        )

    def only(self, index: int) -> "Segmentation":
        """Returns a single mask, in memory of its own; see `best` for the index."""
        row, column = divmod(index, self.iou_predictions.shape[1])
        return replace(
            self,
            low_res_logits=self.low_res_logits[row : row + 1, column : column + 1].copy(),
            iou_predictions=self.iou_predictions[row : row + 1, column : column + 1].copy(),
        )

    def best_of_each(self) -> "Segmentation":
        """Returns each object's mask of the highest score, in memory of its own."""
        return replace(
            self,
            low_res_logits=self.low_res_logits[:, :1].copy(),
            iou_predictions=self.iou_predictions[:, :1].copy(),
        )

    def shown(self, mask_index: int | None) -> int:
        """Returns the index of the mask that an answer of a single mask shows: the requested one, or the best."""
        return self.best if mask_index is None else mask_index

    def grouped(self, records: list[Any]) -> list[Any]:
        """Groups the records of all masks: a list for each object if the prompt had the object axis, else one list."""
        if not self.has_object_axis:
            return records
        candidates = self.num_masks // self.num_objects
        return [records[start : start + candidates] for start in range(0, len(records), candidates)]

    def check_format(self, answer_format: AnswerFormat) -> None:
        """Rejects a `mask_index` that no mask has.

        Raises:
            InvalidRequest: `mask_index` is out of range.
        """
        answer_format.check_index(self.num_masks)

    def _without_object_axis(self, array: FloatArray) -> FloatArray:
        return array if self.has_object_axis else array[0]


def sorted_segmentation(
    image_id: str,
    model_id: str,
    image_size: tuple[int, int],
    low_res_logits: FloatArray,
    iou_predictions: FloatArray,
    has_object_axis: bool,
) -> Segmentation:
    """Builds a Segmentation from `B×C×256×256` logits and `B×C` scores, and sorts each object's masks by score.

    Raises:
        InvalidPrompt: a logit or score is not finite, since the prompt's numbers overflow inside the model. JSON has
            no such number.
    """
    if not (np.isfinite(low_res_logits).all() and np.isfinite(iou_predictions).all()):
        raise InvalidPrompt(
            "prompt: the model's answer is not finite; coordinates or mask_input are too large for the model, or its "
            "weights are broken"
        )
    order = np.argsort(-iou_predictions, axis=1, kind="stable")
    return Segmentation(
        image_id=image_id,
        model_id=model_id,
        image_size=image_size,
        low_res_logits=np.take_along_axis(low_res_logits, order[:, :, None, None], axis=1),
        iou_predictions=np.take_along_axis(iou_predictions, order, axis=1),
        has_object_axis=has_object_axis,
    )
