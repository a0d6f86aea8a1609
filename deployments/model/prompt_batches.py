"""Splits prompts into objects, and groups the objects of many prompts into runs of the mask decoder."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from deployments.messages.arrays import FloatArray, IntArray
from deployments.messages.prompt import Prompt

# The labels that SAM 2's prompt encoder uses for the corners of a box.
BOX_CORNER_LABELS = (2, 3)


@dataclass(frozen=True, eq=False)
class PromptedObject:
    """One object to be segmented.

    Attributes:
        item: the index of its prompt among those that are decoded together.
        coords: `N×2` float32, its points in the model's frame, with the two corners of its box in front; or None.
        labels: `N` int32; None if `coords` is None.
        mask: `1×256×256` float32 logits, or None.
        multimask_output: True for three candidate masks, False for one.
    """

    item: int
    coords: FloatArray | None
    labels: IntArray | None
    mask: FloatArray | None
    multimask_output: bool

    @property
    def kind(self) -> tuple[int | None, bool, bool]:
        """A key that objects must share to be decoded in one run.

        It includes the number of tokens: SAM 2 also attends to padding, so padding would change the results.
        """
        return None if self.coords is None else len(self.coords), self.mask is not None, self.multimask_output


def prompted_objects(item: int, prompt: Prompt, image_size: tuple[int, int], resolution: int) -> list[PromptedObject]:
    """Returns the objects of one prompt, in its order.

    Args:
        item: the prompt's index among those that are decoded together.
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
    """Yields runs of at most `at_most` objects of the same kind; the objects of one prompt keep their order."""
    of_kind: dict[tuple[int | None, bool, bool], list[PromptedObject]] = {}
    for one in objects:
        of_kind.setdefault(one.kind, []).append(one)
    for alike in of_kind.values():
        for start in range(0, len(alike), at_most):
            yield alike[start : start + at_most]


def _point_tokens(prompt: Prompt) -> tuple[FloatArray, IntArray] | None:
    """Returns `B×N×2` coordinates and `B×N` labels, with a box as two points in front; None without points or box."""
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
    """Computes the same as `SAM2Transforms.transform_coords`, in the same order, so that no bit differs."""
    height, width = image_size
    # If coordinates overflow here, the model's results are not finite, and the request is rejected.
    with np.errstate(over="ignore"):
        size: FloatArray = np.array([width, height] if normalize else [1, 1], np.float32)
        in_frame: FloatArray = coords / size * np.float32(resolution)
    return in_frame
