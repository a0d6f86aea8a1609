"""Pictures for people: `python -m training.pictures example | masks | curve`.

example: example.png, six held-out emoji on a wooden-looking ground, and the clicked one's mask, example_truth.png.
masks: the documents' pictures, the clicks of its curl with the mask of the highest score, and everything.
curve: a run's held-out curve, for the model card.
"""

from __future__ import annotations

import argparse
import colorsys
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deployments.messages.everything import AutomaticPrompt
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import sorted_segmentation
from deployments.model.automatic_masks import AutomaticMaskGenerator
from deployments.model.checkpoints import load_model
from deployments.model.engine import Engine
from deployments.settings import BUNDLED_MODEL_ID, ModelSettings
from training.model.network import DEMO_FOLDER
from training.scenes import patches, sprites, textures
from training.scenes.textures import Field
from training.train import RUNS

WIDTH, HEIGHT = 640, 480
GROUND = (196, 158, 118)
# Code point, longer side, centre x, centre y; all of families that training never saw. The first is the clicked one.
LAYOUT = (
    (0x1F350, 200, 210, 250),  # pear
    (0x1FAA3, 190, 505, 130),  # bucket
    (0x1F353, 130, 365, 370),  # strawberry
    (0x1F97E, 170, 535, 365),  # hiking boot
    (0x1F95A, 90, 330, 90),  # egg
    (0x260E, 130, 90, 95),  # telephone
)
CLICK = (220, 240)
CURVE_TITLE = "Mean IoU on held-out scenes: one click, best of three; box (dashed)"
SIZE_COLOURS = {128: "#4c78a8", 256: "#f58518", 512: "#54a24b", 1024: "#b279a2"}


def emoji_sprite(code: int) -> sprites.Sprite:
    """One held-out emoji, cut to its alpha."""
    if not sprites.is_held_out(f"emoji-{code // sprites.EMOJI_FAMILY:x}"):
        raise ValueError(f"U+{code:X} is of a family that training sees")
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    font = ImageFont.truetype(str(sprites.EMOJI_FONT), sprites.EMOJI_SIZE)
    ImageDraw.Draw(canvas).text((8, 8), chr(code), font=font, embedded_color=True)
    sprite = sprites.tidy(canvas)
    if sprite is None:
        raise ValueError(f"the font draws no solid object for U+{code:X}")
    return sprite


def draw_example() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The example picture and, as 0 or 255, where its clicked object is seen."""
    rng = np.random.default_rng(5)
    base = np.array(GROUND, dtype=np.float32)
    canvas: Field = base + 30 * (textures.smooth_noise(rng, HEIGHT, WIDTH, 9)[..., None] - 0.5)
    clicked = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for index, (code, side, x, y) in enumerate(LAYOUT):
        sprite = Image.fromarray(emoji_sprite(code)[..., :4]).convert("RGBa")
        scale = side / max(sprite.size)
        size = (round(sprite.width * scale), round(sprite.height * scale))
        array: Field = np.asarray(sprite.resize(size, Image.Resampling.BICUBIC).convert("RGBA"), dtype=np.float32)
        top, left = y - size[1] // 2, x - size[0] // 2
        alpha = array[..., 3] * np.float32(1 / 255)
        patches.cast_shadow(rng, canvas, alpha, top, left)
        rows, columns, seen = patches.blend(canvas, array[..., :3], alpha, top, left)
        clicked[rows, columns][seen > 0.5] = 255 if index == 0 else 0
    canvas *= (1.12 - 0.3 * textures.ramp(rng, HEIGHT, WIDTH))[..., None]
    return canvas.clip(0, 255).astype(np.uint8), clicked


# ---- what the model finds in it

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


# ---- how a run went


def curve_picture(curve: list[dict[str, float]]) -> Figure:
    """The held-out IoUs of a run by its minutes, coloured by the size in training."""
    figure = Figure(figsize=(5.8, 3.1), layout="constrained")
    axes = figure.subplots()
    for key, style in (("one_click_best_of_three", "-"), ("box", "--")):
        told = [(note["minutes"], note[key]) for note in curve if key in note]
        axes.plot(*zip(*told, strict=True), style, color="#888")
    for size, colour in SIZE_COLOURS.items():
        told = [(note["minutes"], note["one_click_best_of_three"]) for note in curve if note["size"] == size]
        if told:
            axes.plot(*zip(*told, strict=True), "o", color=colour, markersize=5, label=f"{size} pixels")
    axes.set(ylim=(0, 1), xlabel="minutes of training", title=CURVE_TITLE)
    axes.title.set(fontsize=9, fontweight="bold")
    axes.grid(axis="y", color="#ddd")
    axes.legend(loc="lower right")
    return figure


# ---- commands


def write_example(folder: Path) -> None:
    """Writes example.png and example_truth.png."""
    picture, clicked = draw_example()
    Image.fromarray(picture).save(folder / "example.png", optimize=True)
    Image.fromarray(clicked).save(folder / "example_truth.png", optimize=True)
    print(f"example.png {WIDTH}x{HEIGHT}, click at {CLICK}, object of {int((clicked > 0).sum())} pixels")


def write_masks(folder: Path) -> None:
    """Writes example_mask.png and example_everything.png."""
    engine = Engine(load_model(ModelSettings(model_id=BUNDLED_MODEL_ID), lambda *_: None), torch.device("cpu"))
    pixels = np.array(Image.open(DEMO_FOLDER / "example.png").convert("RGB"))
    draw_click(engine, pixels.copy()).save(folder / "example_mask.png", optimize=True)
    draw_everything(engine, pixels.copy()).save(folder / "example_everything.png", optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("example", "masks", "curve"))
    parser.add_argument("--folder", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--run", default="demo", help="whose curve")
    args = parser.parse_args()
    if args.what == "curve":
        curve = json.loads((RUNS / args.run / "curve.json").read_text())
        curve_picture(curve).savefig(args.folder / "curve.svg")
    else:
        {"example": write_example, "masks": write_masks}[args.what](args.folder)


if __name__ == "__main__":
    main()
