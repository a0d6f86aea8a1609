"""Draws the README's pictures: the clicks of its curl with the mask of the highest score; and everything."""

import colorsys

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deployments.messages.everything import AutomaticPrompt
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import sorted_segmentation
from deployments.model.automatic_masks import AutomaticMaskGenerator
from deployments.model.checkpoints import DEMO, load_model
from deployments.model.engine import Engine
from deployments.settings import BUNDLED_MODEL_ID, ModelSettings

CLICKS, LABELS = [[220, 240], [340, 90]], [1, 0]
COLOURS = {1: (30, 200, 60), 0: (220, 30, 30)}
EVERYTHING = AutomaticPrompt(points_per_side=16, pred_iou_thresh=0.5, stability_score_thresh=0.8)
GOLDEN = 0.618034
TINT = np.array([127, 0, 127], np.uint8)


def best_mask(engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The `H×W` mask of the highest score on an `H×W×3` RGB image."""
    [embedding] = engine.embed([pixels])
    [(logits, scores)] = engine.decode([(embedding, Prompt(point_coords=CLICKS, point_labels=LABELS))])
    segmentation = sorted_segmentation("", "", embedding.image_size, logits, scores, has_object_axis=False)
    mask: NDArray[np.bool_] = segmentation.masks()[0]
    return mask


def all_masks(engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The `K×H×W` masks of everything in an `H×W×3` RGB image."""
    generator = AutomaticMaskGenerator(engine, EVERYTHING, (pixels.shape[0], pixels.shape[1]))
    for _ in generator.steps(engine.embed([pixels])[0], generator.crops[0]):
        continue
    return generator.finish("", "").masks()


def draw_click(engine: Engine, pixels: NDArray[np.uint8]) -> Image.Image:
    """The image with the clicks and their mask."""
    mask = best_mask(engine, pixels)
    pixels[mask] = pixels[mask] // 2 + TINT
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for (x, y), label in zip(CLICKS, LABELS, strict=True):
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=COLOURS[label], outline="white", width=2)
    return picture


def draw_everything(engine: Engine, pixels: NDArray[np.uint8]) -> Image.Image:
    """The image with every mask in a colour of its own, small ones on top."""
    masks = all_masks(engine, pixels)
    picture = pixels.copy()
    for place, index in enumerate(np.argsort(-masks.sum(axis=(1, 2)))):
        colour = [int(255 * part) for part in colorsys.hsv_to_rgb(place * GOLDEN % 1, 0.9, 1)]
        picture[masks[index]] = pixels[masks[index]] // 3 + np.array(colour, np.float32) * 2 // 3
    return Image.fromarray(picture)


def main() -> None:
    """Writes example_mask.png and example_everything.png into deployments/model/demo."""
    engine = Engine(load_model(ModelSettings(model_id=BUNDLED_MODEL_ID), lambda *_: None), torch.device("cpu"))
    pixels = np.array(Image.open(DEMO / "example.png").convert("RGB"))
    draw_click(engine, pixels.copy()).save(DEMO / "example_mask.png", optimize=True)
    draw_everything(engine, pixels.copy()).save(DEMO / "example_everything.png", optimize=True)


if __name__ == "__main__":
    main()
