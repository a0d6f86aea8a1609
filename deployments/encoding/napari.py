"""Writes labels as napari opens them: a TIFF of 16 bits, in which a pixel is the number of the object there, or 0."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.encoding.objects import image_bytes
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part


def write(part: Part, _: AnswerFormat) -> bytes:
    """An image of all objects."""
    return image_bytes(Image.fromarray(labels_of(part)), "TIFF", compression="tiff_adobe_deflate")


def labels_of(part: Part) -> NDArray[np.uint16]:
    """Returns `H×W` numbers of objects; where masks overlap, the one with the higher score is on top."""
    masks = part.masks
    labels = np.zeros(masks.image_size, np.uint16)
    for index in np.argsort([masks.score(index) for index in range(masks.num_masks)], kind="stable").tolist():
        labels[masks.mask(index)] = part.first_object + index + 1
    return labels
