"""MaskSet: the interface that Segmentation and AutomaticMasks share, for all code that writes masks."""

from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from deployments.messages.answer_format import AnswerFormat
from deployments.messages.arrays import FloatArray

Record = TypeVar("Record")


class MaskSet(Protocol):
    """Masks of one image, kept as low-resolution logits, and numbered over all objects and their candidates."""

    @property
    def image_id(self) -> str:
        """Digest of the image."""

    @property
    def model_id(self) -> str:
        """The model that found the masks."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""

    @property
    def low_res_logits(self) -> FloatArray:
        """`…×256×256` float32, not clamped."""

    @property
    def logits(self) -> FloatArray:
        """`…×256×256` float32 in [-32, 32], as they are in answers."""

    @property
    def num_objects(self) -> int:
        """The number of objects; an answer can be cut between two objects."""

    @property
    def num_masks(self) -> int:
        """The number of masks of all objects."""

    @property
    def masks_shape(self) -> tuple[int, ...]:
        """The shape of the array of all full-size masks, `…×H×W`."""

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Computes one mask at the image's size, `H×W` bool."""

    def score(self, index: int) -> float:
        """Returns the model's estimate of a mask's IoU."""

    def facts(self, index: int) -> dict[str, Any]:
        """Returns the further values of a mask's record, besides its pixels, area and box."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the facts of all masks, one array for each key."""

    def objects(self, first: int, last: int) -> Self:
        """Returns objects `first` to `last` (exclusive), in memory of their own."""

    def only(self, index: int) -> Self:
        """Returns a single mask, in memory of its own."""

    def best_of_each(self) -> Self:
        """Returns the best mask of each object, in memory of its own."""

    def shown(self, mask_index: int | None) -> int | None:
        """Returns the index of the mask that a single image shows; None if the image shows all masks, as labels."""

    def grouped(self, records: list[Record]) -> list[Any]:
        """Groups the records of all masks into the lists of an answer."""

    def check_format(self, answer_format: AnswerFormat) -> None:
        """Rejects a format, or a format's option, that does not suit these masks.

        Raises:
            InvalidRequest: these masks cannot be written in the format, or with the option.
        """
