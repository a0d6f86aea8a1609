"""What RequestParser asks of a model replica, what a replica may ask for first, and what it answers.

A call is a frozen value: the same call gives the same answer on every replica, so it may be sent again after a
replica's death. Data that is large, and that the replica may already remember, does not belong into the call. It is
supplied only when the replica answers Wanted.
"""

import math
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

from deployments.errors import TooLarge
from deployments.messages.arrays import LOW_RES_SIZE, RgbArray
from deployments.messages.everything import AutomaticMasks, AutomaticPrompt
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation

# ---- answers


@dataclass(frozen=True)
class EmbeddedImage:
    """An image that a model has embedded.

    Attributes:
        image_id: its digest, by which prompts may name it.
        model_id: the model.
        image_size: height and width in pixels.
    """

    image_id: str
    model_id: str
    image_size: tuple[int, int]


Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class ModelAnswer(Generic[Result]):
    """What a model replica answers, and where its time went.

    Attributes:
        result: a Segmentation, AutomaticMasks or an EmbeddedImage.
        cache: `hit` if the image was remembered, or already on its way for another request; else `miss`.
        embed_s: seconds of the image encoder's run, or of waiting for another request's run.
        decode_s: seconds of the decoder's runs, which other requests' prompts may have shared.
    """

    result: Result
    cache: Literal["hit", "miss"]
    embed_s: float
    decode_s: float = 0.0


@dataclass(frozen=True)
class AnswerSize:
    """What an answer will hold, and how much it may hold.

    Attributes:
        num_masks: full-size masks.
        max_numbers: limit on the numbers of all masks and their low-resolution logits.
        advice: what to ask for instead of too much.
    """

    num_masks: int
    max_numbers: int
    advice: str = "ask for fewer objects, or for multimask_output=false"

    def check(self, image_size: tuple[int, int]) -> None:
        """Rejects an answer that would be too large.

        Args:
            image_size: height and width of the image.

        Raises:
            TooLarge: it would hold too many numbers.
        """
        height, width = image_size
        numbers = self.num_masks * (width * height + LOW_RES_SIZE**2)
        if numbers > self.max_numbers:
            raise TooLarge(
                f"image: {self.num_masks} masks of {width}×{height} and their logits are {numbers} numbers, more than "
                f"the {self.max_numbers} that one answer of this format may have; {self.advice}"
            )


# ---- calls


@dataclass(frozen=True, eq=False)
class ModelCall(Generic[Result]):
    """One question about one image.

    Attributes:
        image_id: digest of the image.
    """

    image_id: str

    @property
    def needs_pixels(self) -> bool:
        """Whether the replica needs the pixels even if it remembers the image."""
        return False


@dataclass(frozen=True, eq=False)
class EmbedCall(ModelCall[EmbeddedImage]):
    """Embeds an image ahead of its prompts."""


@dataclass(frozen=True, eq=False)
class SegmentCall(ModelCall[Segmentation]):
    """Segments what a prompt points to.

    Attributes:
        prompt: what to segment.
        answer_size: how much the answer may hold; the replica always knows the image's size, the caller does not.
            None is no limit.
    """

    prompt: Prompt
    answer_size: AnswerSize | None = None


@dataclass(frozen=True, eq=False)
class AutoCall(ModelCall[AutomaticMasks]):
    """Segments everything.

    Attributes:
        prompt: the grid of points, and which masks to keep.
        max_numbers: how many numbers the masks may be, see AnswerSize; None is no limit.
    """

    prompt: AutomaticPrompt
    max_numbers: int | None = None

    @property
    def needs_pixels(self) -> bool:
        """Crops are embedded anew each time: only the whole image is remembered."""
        return self.prompt.crop_n_layers > 0


# ---- what calls are supplied with

Want: TypeAlias = Literal["pixels"]
"""Data that a replica may lack: `pixels`, the `H×W×3` uint8 RGB image."""


@dataclass(frozen=True)
class Wanted:
    """A replica's answer to a call that it cannot serve without more data: send the call again, with the data.

    Attributes:
        what: the data that is missing.
    """

    what: Want = "pixels"


@dataclass(frozen=True, eq=False)
class Supplies:
    """The data that a call brings along.

    Attributes:
        pixels: `H×W×3` uint8 RGB, or None.
    """

    pixels: RgbArray | None = None


@dataclass(frozen=True)
class Caller:
    """The request on whose behalf a call is made.

    Attributes:
        name: unlike that of any other request, and the same each time that the request sends a call.
        offers: what it can supply. Only a caller that offers the pixels may be elected to send them.
        wait_s: seconds until its deadline. Where the queue is longer, the replica rejects the call at once.
    """

    name: str = ""
    offers: frozenset[Want] = frozenset({"pixels"})
    wait_s: float = math.inf
