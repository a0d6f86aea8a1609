"""The oracle: what SAM 2's own predictor answers to a request, computed in this process."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor

Fields = Mapping[str, NDArray[Any]]
"""The prompt fields of a request: point_coords, point_labels, box, mask_input."""


class Answer(NamedTuple):
    """Masks, scores and low-resolution logits, with the object axis where the prompt had one."""

    masks: NDArray[Any]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]


def parse_answer(body: bytes) -> Answer:
    """The answer in a response's body; 0/1 masks stay integers."""
    document = orjson.loads(body)
    assert list(document) == ["masks", "scores", "logits"]
    masks, scores, logits = (np.array(orjson.loads(text)) for text in document.values())
    return Answer(
        masks if masks.dtype.kind == "i" else masks.astype(np.float32),
        scores.astype(np.float32),
        logits.astype(np.float32),
    )


def json_text(array: NDArray[Any]) -> str:
    """A prompt field as a client writes it."""
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY).decode()


def upright(data: bytes) -> Image.Image:
    """The RGB image that a viewer shows: upright, over white, of 16-bit samples the high byte."""
    with Image.open(io.BytesIO(data)) as file:
        image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            seen = Image.new("RGB", image.size, "white")
            seen.paste(image.convert("RGB"), mask=image.convert("RGBA").getchannel("A"))
            return seen
        if not image.mode.startswith("I;16"):
            return image.convert("RGB")
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")


class Reference:
    """`SAM2ImagePredictor`, one for each image, so that an image's requests share one run of the encoder."""

    def __init__(self, model: SAM2Base) -> None:
        self._model = model
        self._predictors: dict[bytes, SAM2ImagePredictor] = {}

    def answer(self, image: bytes, fields: Fields, multimask_output: bool, normalize_coords: bool) -> Answer:
        """What the service must answer, masks as un-thresholded logits."""
        if image not in self._predictors:
            self._predictors[image] = SAM2ImagePredictor(self._model)
            self._predictors[image].set_image(upright(image))
        parts = [
            self._predictors[image].predict(
                **one,
                multimask_output=multimask_output,
                return_logits=True,
                normalize_coords=normalize_coords,
            )
            for one in _predictable(fields)
        ]
        masks, scores, logits = (np.concatenate([part[index] for part in parts]) for index in range(3))
        num_masks = 3 if multimask_output else 1
        masks, logits = (array.reshape(-1, num_masks, *array.shape[-2:]) for array in (masks, logits))
        scores = scores.reshape(-1, num_masks)
        order = np.argsort(-scores, axis=1, kind="stable")
        answer = Answer(
            np.take_along_axis(masks, order[:, :, None, None], axis=1),
            np.take_along_axis(scores, order, axis=1),
            np.take_along_axis(logits, order[:, :, None, None], axis=1),
        )
        return answer if has_object_axis(fields) else Answer(*(array[0] for array in answer))


def has_object_axis(fields: Fields) -> bool:
    """Whether any field speaks of several objects."""
    axes = {"point_coords": 3, "box": 2, "mask_input": 4}
    return any(fields[name].ndim == ndim for name, ndim in axes.items() if name in fields)


def _predictable(fields: Fields) -> list[Fields]:
    """What the predictor must be asked: it cannot take masks of several objects without points or boxes."""
    if set(fields) == {"mask_input"} and fields["mask_input"].ndim == 4:
        return [{"mask_input": mask} for mask in fields["mask_input"]]
    return [fields]
