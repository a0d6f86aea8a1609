"""Segments everything: prompts a grid of points over the image and its crops, and keeps the best of their masks.

Computes the same as SAM 2's `SAM2AutomaticMaskGenerator`, in its order and with its arithmetic, but in small steps,
between which other requests have their turn. Only masks whose predicted IoU is good enough are brought to the image's
size. (The generator does so with all masks, and encodes each one's run lengths.)
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.utils.amg import (
    batched_mask_to_box,
    build_all_layer_point_grids,
    generate_crop_boxes,
    is_box_near_crop_edge,
    uncrop_boxes_xyxy,
)
from scipy import ndimage

from deployments.errors import InvalidPrompt, Overloaded, TooLarge
from deployments.messages.arrays import LOW_RES_SIZE, FloatArray
from deployments.messages.calls import AnswerSize
from deployments.messages.everything import AutomaticMasks, AutomaticPrompt
from deployments.model.engine import Engine, ImageEmbedding

CLEANED_LOGIT = 10.0
"""SAM 2 sets the logits of a filled hole to this, and those of a removed island to its negative."""

PIXELS_PER_STEP = 4_000_000
"""Full-size logits computed in one step, but at least one mask: some hundredths of a second on a CPU."""

MAX_CANDIDATES = 4_096
"""How many masks of one request may pass the thresholds. Each takes 256 KB until the best of them are known."""

EVERY_NEIGHBOUR = np.ones((3, 3), np.int8)

Boxes = TypeVar("Boxes", torch.Tensor, FloatArray)


@dataclass(frozen=True)
class Crop:
    """A part of the image that is segmented by itself; the first crop is the whole image.

    Attributes:
        box: XYXY in pixels.
        layer: 0 for the whole image.
    """

    box: tuple[int, int, int, int]
    layer: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        left, top, right, bottom = self.box
        return bottom - top, right - left

    @property
    def pixels(self) -> tuple[slice, slice]:
        """The slices of an `H×W×3` image that the crop covers."""
        left, top, right, bottom = self.box
        return slice(top, bottom), slice(left, right)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Masks of one crop, on the engine's device, except for their logits, which the generator keeps on the CPU.

    Attributes:
        numbers: `K`, the index of each mask's logits in the generator's list.
        predicted_iou: `K` float32.
        points: `K×2` float32, XY in pixels of the crop, later of the image.
        stability_score: `K` float32.
        boxes: `K×4` XYXY, in the same pixels as `points`.
        crop_boxes: `K×4` XYXY in pixels of the image.
    """

    numbers: torch.Tensor
    predicted_iou: torch.Tensor
    points: torch.Tensor
    stability_score: torch.Tensor
    boxes: torch.Tensor
    crop_boxes: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> "Candidates":
        return Candidates(*(tensor[rows] for tensor in vars(self).values()))


DecodedPoints: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Logits, predicted IoUs and points of some masks."""


class AutomaticMaskGenerator:
    """Segments everything in one image.

    For each of `crops`, iterate over `steps`; then call `finish`. All of this runs on the decoding thread.

    Args:
        engine: the model.
        prompt: the grid, and the thresholds for masks to keep.
        image_size: height and width of the image in pixels.

    Raises:
        InvalidPrompt: the image is too small for so many crops.
    """

    def __init__(self, engine: Engine, prompt: AutomaticPrompt, image_size: tuple[int, int]) -> None:
        self._engine = engine
        self._prompt = prompt
        self._image_size = image_size
        boxes, layers = generate_crop_boxes(image_size, prompt.crop_n_layers, prompt.crop_overlap_ratio)
        self.crops = [Crop(tuple(box), layer) for box, layer in zip(boxes, layers, strict=True)]
        if min(side for crop in self.crops for side in crop.size) < 1:
            raise InvalidPrompt(f"crop_n_layers: {prompt.crop_n_layers} is too many for so small an image")
        self._grids = build_all_layer_point_grids(
            prompt.points_per_side, prompt.crop_n_layers, prompt.crop_n_points_downscale_factor
        )
        self._kept: list[Candidates] = []
        # `256×256` each, in the CPU's memory; None once the mask is known not to be kept.
        self._logits: list[FloatArray | None] = []

    def steps(self, embedding: ImageEmbedding, crop: Crop) -> Iterator[None]:
        """Finds the masks of one crop; yields after each run of the decoder and after each few masks examined.

        Raises:
            Overloaded: a mask does not fit into the device's memory.
            TooLarge: too many masks pass the thresholds.
        """
        height, width = crop.size
        points = (self._grids[crop.layer] * np.array([[width, height]])).astype(np.float32)
        at_once = min(self._prompt.points_per_batch, self._engine.objects_at_once)
        found: list[Candidates] = []
        for start in range(0, len(points), at_once):
            decoded = self._decode(embedding, points[start : start + at_once])
            yield
            chunk = max(1, PIXELS_PER_STEP // (height * width))
            for first in range(0, len(decoded[0]), chunk):
                found.append(self._examine(crop, *(tensor[first : first + chunk] for tensor in decoded)))
                yield
        kept = self._without_duplicates(found, crop)
        self._kept.append(kept)
        self._drop_logits(set(kept.numbers.tolist()), {number for one in found for number in one.numbers.tolist()})

    @torch.inference_mode()
    def finish(self, image_id: str, model_id: str, max_numbers: int | None = None) -> AutomaticMasks:
        """Returns the masks of all crops.

        Args:
            image_id: of the image.
            model_id: of the model.
            max_numbers: how many numbers the masks may hold, see AnswerSize; None for no limit.

        Raises:
            TooLarge: the masks hold more numbers.
        """
        with self._engine.decoding():
            kept = self._joined(self._kept)
            if len(self.crops) > 1:
                # Where masks from two crops show the same thing, the one from the smaller crop is finer.
                kept = kept[_nms(kept, 1 / _areas(kept.crop_boxes), self._prompt.crop_nms_thresh)]
        if max_numbers is not None:
            advice = "raise the thresholds, or send a smaller image"
            AnswerSize(len(kept.numbers), max_numbers, advice).check(self._image_size)
        no_logits = np.zeros((0, LOW_RES_SIZE, LOW_RES_SIZE), np.float32)
        logits = [one for number in kept.numbers.tolist() if (one := self._logits[number]) is not None]
        return AutomaticMasks(
            image_id,
            model_id,
            self._image_size,
            np.stack(logits) if logits else no_logits,
            kept.predicted_iou.cpu().numpy(),
            kept.stability_score.cpu().numpy(),
            kept.points.cpu().numpy(),
            kept.crop_boxes.cpu().numpy().astype(np.int32),
        )

    @torch.inference_mode()
    def _decode(self, embedding: ImageEmbedding, points: FloatArray) -> DecodedPoints:
        """Decodes some points and returns the masks whose predicted IoU is good enough."""
        logits, predicted_iou = self._engine.decode_points(embedding, points)
        with self._engine.decoding():
            logits, predicted_iou = logits.flatten(0, 1), predicted_iou.flatten()
            points_of = torch.from_numpy(points).to(logits.device).repeat_interleave(len(logits) // len(points), dim=0)
            if self._prompt.pred_iou_thresh > 0:
                good = predicted_iou > self._prompt.pred_iou_thresh
                logits, predicted_iou, points_of = logits[good], predicted_iou[good], points_of[good]
            return logits, predicted_iou, points_of

    @torch.inference_mode()
    def _examine(
        self, crop: Crop, logits: torch.Tensor, predicted_iou: torch.Tensor, points: torch.Tensor
    ) -> Candidates:
        """Returns those of a few masks that are stable and not cut off by the crop's edge."""
        try:
            return self._select(crop, logits, predicted_iou, points)
        except torch.OutOfMemoryError as error:
            raise Overloaded("a mask of this size does not fit into the device's free memory") from error

    def _select(
        self, crop: Crop, logits: torch.Tensor, predicted_iou: torch.Tensor, points: torch.Tensor
    ) -> Candidates:
        with self._engine.decoding():
            if self._prompt.min_mask_region_area > 0:
                logits = _without_small_regions(logits, self._prompt.min_mask_region_area)
            masks = torch.nn.functional.interpolate(logits[:, None], crop.size, mode="bilinear", align_corners=False)[
                :, 0
            ]
            stability_score = _stability_score(masks, self._prompt.stability_score_offset)
            boxes = batched_mask_to_box(masks > 0)
            crop_box, whole = list(crop.box), list(self.crops[0].box)
            good = ~is_box_near_crop_edge(boxes, crop_box, whole)
            if self._prompt.stability_score_thresh > 0:
                good &= stability_score >= self._prompt.stability_score_thresh
            crop_boxes = torch.tensor([crop_box] * len(boxes), device=boxes.device).reshape(-1, 4)
            numbers = self._store(logits[good]).to(boxes.device)
            rest = (tensor[good] for tensor in (predicted_iou, points, stability_score, boxes, crop_boxes))
            return Candidates(numbers, *rest)

    def _store(self, logits: torch.Tensor) -> torch.Tensor:
        """Keeps logits in the CPU's memory; returns their indices."""
        first = len(self._logits)
        # Copies, since a view would keep the logits of its whole run in memory.
        self._logits += [one.copy() for one in logits.cpu().numpy()]
        if sum(one is not None for one in self._logits) > MAX_CANDIDATES:
            raise TooLarge(f"pred_iou_thresh: more than {MAX_CANDIDATES} masks pass the thresholds; raise them")
        return torch.arange(first, len(self._logits))

    def _drop_logits(self, kept: set[int], found: set[int]) -> None:
        for number in found - kept:
            self._logits[number] = None

    @torch.inference_mode()
    def _without_duplicates(self, found: list[Candidates], crop: Crop) -> Candidates:
        """Keeps the best of one crop's masks with nearly the same box; returns them in the image's pixels."""
        with self._engine.decoding():
            kept = self._joined(found)
            kept = kept[_nms(kept, kept.predicted_iou, self._prompt.box_nms_thresh)]
            left, top, _, _ = crop.box
            return replace(
                kept,
                points=kept.points + torch.tensor([[left, top]], device=kept.points.device),
                boxes=uncrop_boxes_xyxy(kept.boxes, list(crop.box)),
            )

    def _joined(self, parts: list[Candidates]) -> Candidates:
        """Concatenates candidates; there may be none."""
        device = self._engine.device
        none, no_boxes = torch.zeros(0, device=device), torch.zeros((0, 4), dtype=torch.int64, device=device)
        nothing = Candidates(no_boxes[:, 0], none, torch.zeros((0, 2), device=device), none, no_boxes, no_boxes)
        columns = zip(*(vars(part).values() for part in (nothing, *parts)), strict=True)
        return Candidates(*(torch.cat(column) for column in columns))


def _nms(candidates: Candidates, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Returns the rows that non-maximum suppression of the boxes keeps, the best first."""
    boxes = candidates.boxes.float()
    return non_maximum_suppression(boxes, scores, threshold).to(boxes.device)


def non_maximum_suppression(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Drops each box whose IoU with a better box that is kept is above a threshold.

    Gives what `torchvision.ops.nms` gives on a CPU, with its arithmetic: float32, compared in float64. Importing
    torchvision would double the time that a replica needs to start.

    Args:
        boxes: `K×4` float32 XYXY.
        scores: `K` floats; of equal scores the first is the better one.
        threshold: of the IoU, 0 to 1.

    Returns:
        The indices of the boxes that are kept, int64, the best first, on the CPU.
    """
    order = scores.cpu().sort(descending=True, stable=True).indices
    corners = boxes.cpu()[order].numpy()
    areas = _areas(corners)
    left = np.ones(len(order), bool)
    for index, (corner, area) in enumerate(zip(corners, areas, strict=True)):
        if not left[index]:
            continue
        others = corners[index + 1 :]
        sides = np.minimum(others[:, 2:], corner[2:]) - np.maximum(others[:, :2], corner[:2])
        shared = sides.clip(0).prod(1)
        # Empty boxes share nothing with anything, themselves included: 0 ÷ 0 is above no threshold.
        with np.errstate(invalid="ignore"):
            overlap = shared / (area + areas[index + 1 :] - shared)
        left[index + 1 :] &= ~(overlap > np.float64(threshold))
    return order[torch.from_numpy(left)]


def _areas(boxes: Boxes) -> Boxes:
    """Returns the `K` areas of `K×4` XYXY boxes, an array or a tensor."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _stability_score(masks: torch.Tensor, offset: float) -> torch.Tensor:
    """Returns `K` float32: the IoU of each mask at a higher with that at a lower threshold; 0 where both are empty.

    Like `sam2.utils.amg.calculate_stability_score`, but counts a row's pixels in 32 bits, not in 16.
    """
    inner, outer = ((masks > threshold).flatten(1).sum(1, dtype=torch.int32) for threshold in (offset, -offset))
    return (inner / outer).nan_to_num(0.0)


def _without_small_regions(logits: torch.Tensor, area: int) -> torch.Tensor:
    """Fills holes and removes islands of up to `area` pixels of the 256×256 logits, as SAM 2's CUDA extension does.

    Pixels that touch at a corner belong to the same region; holes and islands are both those of the original mask.
    """
    cleaned = logits.cpu().numpy().copy()
    for one in cleaned:
        mask = one > 0
        hole, island = (_in_small_region(region, area) for region in (~mask, mask))
        one[hole] = CLEANED_LOGIT
        one[island] = -CLEANED_LOGIT
    return torch.from_numpy(cleaned).to(logits.device)


def _in_small_region(mask: NDArray[np.bool_], area: int) -> NDArray[np.bool_]:
    labels, _ = ndimage.label(mask, EVERY_NEIGHBOUR)
    is_small = np.bincount(labels.ravel()) <= area
    # Label 0 marks the pixels that are not in the mask.
    is_small[0] = False
    in_small: NDArray[np.bool_] = is_small[labels]
    return in_small
