"""What a model replica answers, and how much an answer may hold."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from deployments.errors import TooLarge
from deployments.messages.arrays import LOW_RES_SIZE


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


@dataclass(frozen=True)
class PixelsWanted:
    """A model replica's answer to an image_id that it does not remember: send the request again, with the pixels."""


@dataclass(frozen=True)
class AnswerSize:
    """What an answer will hold, and what it may.

    Attributes:
        num_masks: full-size masks.
        max_numbers: of all masks and their low-resolution logits.
        advice: what to ask for instead, if that is too much.
    """

    num_masks: int
    max_numbers: int
    advice: str = "ask for fewer objects, or for multimask_output=false"

    def check(self, image_size: tuple[int, int]) -> None:
        """Refuses an answer that would be too large.

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


Answered = TypeVar("Answered")


@dataclass(frozen=True, eq=False)
class ModelAnswer(Generic[Answered]):
    """What a model replica answers, and where its time went.

    Attributes:
        masks: a Segmentation, or AutomaticMasks.
        cache: `hit` if the image was remembered, or already on its way for another request; else `miss`.
        embed_s: seconds of the image encoder's run, or of waiting for that of another request.
        decode_s: seconds of the run that decoded the prompt, together with those of other requests.
    """

    masks: Answered
    cache: Literal["hit", "miss"]
    embed_s: float
    decode_s: float
