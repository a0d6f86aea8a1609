"""Draw the example picture of the demo: six held-out emoji on a wooden-looking ground, and the clicked one's mask."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from training import patches, sprites, textures
from training.model import DEMO_FOLDER
from training.textures import Field

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


def draw() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
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


def main() -> None:
    """Write example.png and example_truth.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=DEMO_FOLDER)
    folder: Path = parser.parse_args().folder
    picture, clicked = draw()
    Image.fromarray(picture).save(folder / "example.png", optimize=True)
    Image.fromarray(clicked).save(folder / "example_truth.png", optimize=True)
    print(f"example.png {WIDTH}x{HEIGHT}, click at {CLICK}, object of {int((clicked > 0).sum())} pixels")


if __name__ == "__main__":
    main()
