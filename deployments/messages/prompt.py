"""Prompt: what to segment in an image.

A Prompt validates itself, so that HTTP requests and handle calls share the same rules. Names, shapes and meanings are
those of SAM 2's `SAM2ImagePredictor.predict`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deployments.errors import InvalidPrompt
from deployments.messages.arrays import LOW_RES_SIZE, FloatArray, IntArray

LARGEST_FRACTION = 1.5
"""Of coordinates that are fractions of the image's size: a click may lie a little outside, but not at 200 pixels."""

PADDING = -1

POINT_LABELS = {PADDING: "padding", 0: "background", 1: "foreground", 2: "box top left", 3: "box bottom right"}


def _finite_array(field: str, value: ArrayLike) -> FloatArray:
    """Returns `value` as a float32 array; raises InvalidPrompt if it is ragged, not numeric, empty, NaN or infinite."""
    try:
        raw = np.asarray(value)
    except ValueError as error:
        raise InvalidPrompt(f"{field}: the rows have different lengths") from error
    if raw.dtype.kind not in "iuf":
        raise InvalidPrompt(f"{field}: must hold numbers only")
    if raw.size == 0:
        raise InvalidPrompt(f"{field}: is empty")
    with np.errstate(over="ignore"):
        array = raw.astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidPrompt(f"{field}: must be finite; NaN, Infinity and numbers beyond float32 are not accepted")
    return array


def _point_coords(value: ArrayLike) -> FloatArray:
    array = _finite_array("point_coords", value)
    if array.ndim not in (2, 3) or array.shape[-1] != 2:
        raise InvalidPrompt(f"point_coords: must be N×2 or B×N×2, is {_shape(array)}")
    return array


def _point_labels(value: ArrayLike) -> IntArray:
    array = _finite_array("point_labels", value)
    if array.ndim not in (1, 2):
        raise InvalidPrompt(f"point_labels: must be N or B×N, is {_shape(array)}")
    unknown = sorted(set(array.ravel().tolist()) - set(POINT_LABELS))
    if unknown:
        known = ", ".join(f"{label} {meaning}" for label, meaning in POINT_LABELS.items())
        raise InvalidPrompt(f"point_labels: unknown label {unknown[0]:g}; known labels are {known}")
    return array.astype(np.int32)


def _box(value: ArrayLike) -> FloatArray:
    array = _finite_array("box", value)
    if array.ndim not in (1, 2) or array.shape[-1] != 4:
        raise InvalidPrompt(f"box: must be [x0, y0, x1, y1] or B×4, is {_shape(array)}")
    if (array[..., 0] > array[..., 2]).any() or (array[..., 1] > array[..., 3]).any():
        raise InvalidPrompt("box: must be [x0, y0, x1, y1] with x0 ≤ x1 and y0 ≤ y1")
    return array


def _mask_input(value: ArrayLike) -> FloatArray:
    array = _finite_array("mask_input", value)
    if array.ndim not in (3, 4) or array.shape[-2:] != (LOW_RES_SIZE, LOW_RES_SIZE) or array.shape[-3] not in (1, 3):
        size = f"{LOW_RES_SIZE}×{LOW_RES_SIZE}"
        raise InvalidPrompt(f"mask_input: must be 1×{size} or B×1×{size}, is {_shape(array)}")
    # The whole `logits` of a three-mask answer is accepted too; its first mask, the best, is used.
    return np.ascontiguousarray(array[..., :1, :, :])


def _shape(array: NDArray[Any]) -> str:
    return "×".join(map(str, array.shape)) or "a single number"


@dataclass(frozen=True, eq=False, init=False)
class Prompt:
    """What to segment in an image: points, a box, a mask, any mix of them, or nothing.

    Any array-like is accepted and kept as float32 (labels as int32). A leading object axis `B` prompts B objects at
    once; the fields that have it must agree on B, but one `mask_input` may serve all objects.

    Attributes:
        point_coords: `N×2` or `B×N×2`, XY in pixels.
        point_labels: `N` or `B×N`: 1 foreground, 0 background, 2 and 3 box corners, -1 padding.
        box: `[x0, y0, x1, y1]` or `B×4`, XYXY in pixels.
        mask_input: `1×256×256` or `B×1×256×256`, logits of an earlier answer. If these are the logits of three
            masks, `3×256×256`, the first mask is used, which has the highest score.
        multimask_output: True for three candidate masks for each object, False for one.
        normalize_coords: False if coordinates are already divided by the image's width and height; none is then above
            1.5.

    Raises:
        InvalidPrompt: a field is malformed or two fields contradict each other; the message names the field.
    """

    point_coords: FloatArray | None
    point_labels: IntArray | None
    box: FloatArray | None
    mask_input: FloatArray | None
    multimask_output: bool
    normalize_coords: bool

    def __init__(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        normalize_coords: bool = True,
    ) -> None:
        values = {
            "point_coords": None if point_coords is None else _point_coords(point_coords),
            "point_labels": None if point_labels is None else _point_labels(point_labels),
            "box": None if box is None else _box(box),
            "mask_input": None if mask_input is None else _mask_input(mask_input),
            "multimask_output": bool(multimask_output),
            "normalize_coords": bool(normalize_coords),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_labels()
        self._check_object_axes()
        self._check_fractions()

    def _check_fractions(self) -> None:
        if self.normalize_coords:
            return
        fields = {"box": self.box}
        if self.point_coords is not None and self.point_labels is not None:
            # Where padding lies has no meaning.
            fields["point_coords"] = self.point_coords[self.point_labels != PADDING]
        for field, array in fields.items():
            if array is not None and (array > LARGEST_FRACTION).any():
                raise InvalidPrompt(
                    f"{field}: has {array.max():g}, but with normalize_coords=false coordinates are fractions of the "
                    "image's width and height, from 0 to 1"
                )

    def _check_labels(self) -> None:
        if (self.point_coords is None) != (self.point_labels is None):
            given, missing = ("point_coords", "point_labels")[:: 1 if self.point_labels is None else -1]
            raise InvalidPrompt(f"{missing}: must be given together with {given}")
        if self.point_coords is not None and self.point_labels is not None:
            expected = self.point_coords.shape[:-1]
            if self.point_labels.shape != expected:
                raise InvalidPrompt(
                    f"point_labels: must be {_shape(np.empty(expected))} to match point_coords, "
                    f"is {_shape(self.point_labels)}"
                )

    def _check_object_axes(self) -> None:
        counts = self._object_counts()
        # SAM 2 broadcasts one mask over all objects, like the image.
        for field, count in counts.items():
            if count != self.num_objects and not (field == "mask_input" and count == 1):
                others = ", ".join(f"{name} has {number}" for name, number in counts.items())
                raise InvalidPrompt(f"{field}: the number of objects differs: {others}")

    def _object_counts(self) -> dict[str, int]:
        """Returns the number of objects in each field that is given."""
        ndims = {"point_coords": 3, "box": 2, "mask_input": 4}
        fields = {name: getattr(self, name) for name in ndims}
        return {
            name: len(value) if value.ndim == ndims[name] else 1 for name, value in fields.items() if value is not None
        }

    @property
    def num_objects(self) -> int:
        """B, or 1 where the prompt has no object axis."""
        counts = self._object_counts()
        sparse = [count for name, count in counts.items() if name != "mask_input"]
        return sparse[0] if sparse else counts.get("mask_input", 1)

    @property
    def has_object_axis(self) -> bool:
        """Whether any field has a leading object axis; the answer then has one too, even for B = 1."""
        axes = ((self.point_coords, 3), (self.box, 2), (self.mask_input, 4))
        return any(value is not None and value.ndim == ndim for value, ndim in axes)

    @property
    def num_points(self) -> int:
        """The number of points of all objects together."""
        return 0 if self.point_labels is None else int(self.point_labels.size)

    @property
    def num_masks(self) -> int:
        """The number of masks in the answer, over all objects."""
        return self.num_objects * (3 if self.multimask_output else 1)

    def batched_points(self) -> tuple[FloatArray, IntArray] | None:
        """Returns `B×N×2` float32 coordinates and `B×N` int32 labels, or None without points."""
        if self.point_coords is None or self.point_labels is None:
            return None
        return self.point_coords.reshape(-1, *self.point_coords.shape[-2:]), np.atleast_2d(self.point_labels)

    def batched_boxes(self) -> FloatArray | None:
        """Returns `B×4` float32 boxes, or None without boxes."""
        return None if self.box is None else np.atleast_2d(self.box)

    def batched_masks(self) -> FloatArray | None:
        """Returns `B×1×256×256` float32 logits (`1×1×256×256` if all share a mask), or None if none is given."""
        return None if self.mask_input is None else self.mask_input.reshape(-1, 1, LOW_RES_SIZE, LOW_RES_SIZE)
