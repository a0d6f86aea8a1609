"""Prompts taken apart into objects, and objects of many prompts put together into runs of the mask decoder."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from deployments.messages.arrays import FloatArray, IntArray
from deployments.messages.prompt import Prompt

# Labels by which SAM 2's prompt encoder knows the corners of a box.
BOX_CORNER_LABELS = (2, 3)


@dataclass(frozen=True, eq=False)
class PromptedObject:
    """One object to be segmented.

    Attributes:
        item: which of the prompts that are decoded together it belongs to.
        coords: `N×2` float32, its points in the model's frame, the two corners of its box in front; or None.
        labels: `N` int32; None where coords is.
        mask: `1×256×256` float32 logits, or None.
        multimask_output: three candidate masks, or one.
    """

    item: int
    coords: FloatArray | None
    labels: IntArray | None
    mask: FloatArray | None
    multimask_output: bool

    @property
    def kind(self) -> tuple[int | None, bool, bool]:
        """What objects must have in common to be decoded in one run.

        The number of tokens is part of it: SAM 2 attends to padding too, so that padding would change the results.
        """
        return None if self.coords is None else len(self.coords), self.mask is not None, self.multimask_output


def prompted_objects(item: int, prompt: Prompt, image_size: tuple[int, int], resolution: int) -> list[PromptedObject]:
    """The objects of one prompt, in its order.

    Args:
        item: the prompt's place among those that are decoded together.
        prompt: what to segment.
        image_size: height and width of the image in pixels.
        resolution: height and width of the model's frame.
    """
    tokens = _point_tokens(prompt)
    coords = None if tokens is None else _in_model_frame(tokens[0], prompt.normalize_coords, image_size, resolution)
    masks = prompt.batched_masks()
    return [
        PromptedObject(
            item=item,
            coords=None if coords is None else coords[index],
            labels=None if tokens is None else tokens[1][index],
            # One mask may serve all objects.
            mask=None if masks is None else masks[index if len(masks) > 1 else 0],
            multimask_output=prompt.multimask_output,
        )
        for index in range(prompt.num_objects)
    ]


def decodable_together(objects: Iterable[PromptedObject], at_most: int) -> Iterator[list[PromptedObject]]:
    """Runs of objects of the same kind; the objects of one prompt keep their order."""
    of_kind: dict[tuple[int | None, bool, bool], list[PromptedObject]] = {}
    for one in objects:
        of_kind.setdefault(one.kind, []).append(one)
    for alike in of_kind.values():
        for start in range(0, len(alike), at_most):
            yield alike[start : start + at_most]


def _point_tokens(prompt: Prompt) -> tuple[FloatArray, IntArray] | None:
    """`B×N×2` coordinates and `B×N` labels, a box as two points in front; None without any."""
    coords, labels = [], []
    boxes = prompt.batched_boxes()
    if boxes is not None:
        coords.append(boxes.reshape(-1, 2, 2))
        labels.append(np.tile(np.asarray(BOX_CORNER_LABELS, np.int32), (len(boxes), 1)))
    points = prompt.batched_points()
    if points is not None:
        coords.append(points[0])
        labels.append(points[1])
    return (np.concatenate(coords, axis=1), np.concatenate(labels, axis=1)) if coords else None


def _in_model_frame(coords: FloatArray, normalize: bool, image_size: tuple[int, int], resolution: int) -> FloatArray:
    """What `SAM2Transforms.transform_coords` computes, in its order, so that no bit differs."""
    height, width = image_size
    # What overflows here is not finite in the answer either, and refused there.
    with np.errstate(over="ignore"):
        size: FloatArray = np.array([width, height] if normalize else [1, 1], np.float32)
        in_frame: FloatArray = coords / size * np.float32(resolution)
    return in_frame
