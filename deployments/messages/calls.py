"""Messages between RequestParser and model replicas: calls, data that a replica may ask for first, and answers.

A call is a frozen value: the same call gives the same answer on every replica, so it may be sent again after a
replica's death. Large data that a replica may already remember is not part of the call: it is supplied only when the
replica answers Wanted.
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
        image_id: digest of the image; later prompts may give it in place of the image.
        model_id: the model that embedded it.
        image_size: height and width in pixels.
    """

    image_id: str
    model_id: str
    image_size: tuple[int, int]


Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class ModelAnswer(Generic[Result]):
    """A model replica's answer, and where the replica's time went.

    Attributes:
        result: a Segmentation, AutomaticMasks or an EmbeddedImage.
        cache: `hit` if the image was remembered, or was already being embedded for another request; else `miss`.
        embed_s: seconds that the image encoder ran, or that the call waited for another request's run.
        decode_s: seconds that the decoder ran; other requests' prompts may have been in the same runs.
    """

    result: Result
    cache: Literal["hit", "miss"]
    embed_s: float
    decode_s: float = 0.0


@dataclass(frozen=True)
class AnswerSize:
    """How much an answer will hold, and how much it may hold.

    Attributes:
        num_masks: the number of full-size masks.
        max_numbers: limit on the count of numbers in all masks and their low-resolution logits.
        advice: the end of the error message: how to ask for less.
    """

    num_masks: int
    max_numbers: int
    advice: str = "ask for fewer objects, or for multimask_output=false"

    def check(self, image_size: tuple[int, int]) -> None:
        """Rejects an answer that would be too large.

        Args:
            image_size: height and width of the image in pixels.

        Raises:
            TooLarge: the answer would hold too many numbers.
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
        answer_size: how much the answer may hold; None is no limit. The replica checks it, since the caller does not
            always know the image's size.
    """

    prompt: Prompt
    answer_size: AnswerSize | None = None


@dataclass(frozen=True, eq=False)
class AutoCall(ModelCall[AutomaticMasks]):
    """Segments everything in an image.

    Attributes:
        prompt: the grid of points, and which masks to keep.
        max_numbers: limit on the count of numbers in all masks, see AnswerSize; None is no limit.
    """

    prompt: AutomaticPrompt
    max_numbers: int | None = None

    @property
    def needs_pixels(self) -> bool:
        """Whether there are crops: they are embedded for each call, since only the whole image is remembered."""
        return self.prompt.crop_n_layers > 0


# ---- what calls are supplied with

Want: TypeAlias = Literal["pixels", "frames", "state"]
"""Data that a replica may lack: `pixels`, the `H×W×3` uint8 RGB image; for a TrackCall, `frames` of the video (a
FrameBatch), or the `state` before them (a TrackState)."""


@dataclass(frozen=True)
class Wanted:
    """A replica's answer to a call that needs more data; the caller sends the call again, with the data.

    Attributes:
        what: the data that is missing.
    """

    what: Want = "pixels"


@dataclass(frozen=True, eq=False)
class Supplies:
    """The data that is sent along with a call.

    Attributes:
        pixels: `H×W×3` uint8 RGB, or None.
    """

    pixels: RgbArray | None = None


@dataclass(frozen=True)
class Caller:
    """The request on whose behalf a call is made.

    Attributes:
        name: unique to the request, and the same each time that the request sends a call.
        offers: the data that the request can supply. Only a caller that offers pixels may be elected to send them.
        wait_s: seconds until the request's deadline. If the queue is longer, the replica rejects the call at once.
    """

    name: str = ""
    offers: frozenset[Want] = frozenset({"pixels"})
    wait_s: float = math.inf
