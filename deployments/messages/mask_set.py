"""MaskSet: what the masks of a prompt and those of everything have in common, for all that writes masks."""

from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from deployments.messages.answer_format import AnswerFormat
from deployments.messages.arrays import FloatArray

Record = TypeVar("Record")


class MaskSet(Protocol):
    """Masks of one image, kept as low-resolution logits; counted through objects and their candidates."""

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
        """`…×256×256` float32 in [-32, 32], as answers hold them."""

    @property
    def num_objects(self) -> int:
        """Objects, between which an answer can be cut."""

    @property
    def num_masks(self) -> int:
        """Masks of all objects."""

    @property
    def masks_shape(self) -> tuple[int, ...]:
        """Shape of the array of all full-size masks, `…×H×W`."""

    def mask(self, index: int) -> NDArray[np.bool_]:
        """One mask, `H×W` bool."""

    def facts(self, index: int) -> dict[str, Any]:
        """What an answer says of a mask, beside its area and box."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `facts` says of each mask, as one array for all masks."""

    def objects(self, first: int, last: int) -> Self:
        """Some of the objects, in memory of their own."""

    def only(self, index: int) -> Self:
        """A single mask, in memory of its own."""

    def shown(self, mask_index: int | None) -> int | None:
        """The mask that an answer of a single mask shows; None if it shows all of them, as labels."""

    def grouped(self, records: list[Record]) -> list[Any]:
        """A record for each mask, in lists as an answer groups them."""

    def check_format(self, answer_format: AnswerFormat) -> None:
        """Rejects a format, or an option of one, that these masks cannot be written in.

        Raises:
            InvalidRequest: it is one.
        """
