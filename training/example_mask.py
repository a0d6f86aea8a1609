"""Draws the README's picture: the example image, the clicks of the README's curl, and the mask of the highest score."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deployments.model.checkpoints import DEMO, load_model
from deployments.model.engine import Engine
from deployments.schema import Prompt, sorted_segmentation
from deployments.settings import BUNDLED_MODEL_ID, ModelSettings

CLICKS, LABELS = [[175, 245], [340, 90]], [1, 0]
COLOURS = {1: (30, 200, 60), 0: (220, 30, 30)}
TINT = np.array([127, 0, 127], np.uint8)


def best_mask(engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The `H×W` mask of the highest score on an `H×W×3` RGB image."""
    [embedding] = engine.embed([pixels])
    [(logits, scores)] = engine.decode([(embedding, Prompt(point_coords=CLICKS, point_labels=LABELS))])
    segmentation = sorted_segmentation("", "", embedding.image_size, logits, scores, has_object_axis=False)
    mask: NDArray[np.bool_] = segmentation.masks()[0]
    return mask


def main() -> None:
    """Writes deployments/model/demo/example_mask.png."""
    engine = Engine(load_model(ModelSettings(model_id=BUNDLED_MODEL_ID), lambda *_: None), torch.device("cpu"))
    pixels = np.array(Image.open(DEMO / "example.png").convert("RGB"))
    mask = best_mask(engine, pixels)
    pixels[mask] = pixels[mask] // 2 + TINT
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for (x, y), label in zip(CLICKS, LABELS, strict=True):
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=COLOURS[label], outline="white", width=2)
    picture.save(DEMO / "example_mask.png", optimize=True)


if __name__ == "__main__":
    main()
