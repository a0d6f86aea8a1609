"""Scenes with exact masks: shapes and sprites over a textured ground, overlapping, shaded, lit, noisy, blurred."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from training import sprites, textures
from training.textures import Field

POOL_FOLDER = Path(__file__).resolve().parent / "runs" / "pool"
SPRITE_SHARE = 0.6
RESAMPLE = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Scene:
    """A picture and, for each pixel, the number of the object seen there (0: the ground)."""

    image: NDArray[np.uint8]
    objects: NDArray[np.uint8]


def sprite_patch(rng: Generator, sprite: sprites.Sprite, side: int) -> tuple[Field, Field]:
    """A sprite, mirrored, turned and scaled: its colours and its coverage."""
    picture = Image.fromarray(sprite)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = side / max(picture.size)
    size = (max(8, round(picture.width * scale)), max(8, round(picture.height * scale)))
    picture = picture.convert("RGBa").resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        picture = picture.rotate(float(rng.uniform(-60, 60)), RESAMPLE, expand=True)
    array = np.asarray(picture.convert("RGBA"), dtype=np.float32)
    return array[..., :3], array[..., 3] * np.float32(1 / 255)


def shape_patch(rng: Generator, ground: Field, side: int) -> tuple[Field, Field]:
    """A shape in a colour that stands out from the ground: its colours and its coverage."""
    height, width = side, max(8, round(side * rng.uniform(0.35, 1.0)))
    if rng.random() < 0.5:
        height, width = width, height
    alpha = textures.shape_alpha(rng, height, width)
    surface = textures.texture(rng, height, width, textures.colour_unlike(rng, ground))
    if rng.random() < 0.5:
        turn = float(rng.uniform(0, 180))
        alpha = np.asarray(Image.fromarray(alpha).rotate(turn, RESAMPLE, expand=True))
        surface = np.asarray(
            Image.fromarray(surface.clip(0, 255).astype(np.uint8)).resize(alpha.shape[::-1]), dtype=np.float32
        )
    return surface, alpha


def _overlap(start: int, length: int, limit: int) -> tuple[slice, slice]:
    """The part of a patch that lies inside the canvas, as slices of the canvas and of the patch."""
    low, high = max(0, start), min(limit, start + length)
    return slice(low, high), slice(low - start, high - start)


def blend(canvas: Field, colours: Field, alpha: Field, top: int, left: int) -> tuple[slice, slice, Field]:
    """Put a patch on the canvas, in place; the rows and columns it covers and its coverage there."""
    rows, patch_rows = _overlap(top, alpha.shape[0], canvas.shape[0])
    columns, patch_columns = _overlap(left, alpha.shape[1], canvas.shape[1])
    seen = alpha[patch_rows, patch_columns]
    area = canvas[rows, columns]
    area += (colours[patch_rows, patch_columns] - area) * seen[..., None]
    return rows, columns, seen


def cast_shadow(rng: Generator, canvas: Field, alpha: Field, top: int, left: int) -> None:
    """Darken the ground beside an object that is about to be put down."""
    reach = max(2, round(0.06 * max(alpha.shape)))
    padded = Image.fromarray((np.pad(alpha, 2 * reach) * 255).astype(np.uint8))
    soft = np.asarray(padded.filter(ImageFilter.GaussianBlur(reach / 2)), dtype=np.float32) / 255
    down, right = (int(v) for v in rng.integers(-reach, reach + 1, 2))
    black = np.zeros((*soft.shape, 3), dtype=np.float32)
    blend(
        canvas,
        black,
        (soft * rng.uniform(0.2, 0.5)).astype(np.float32),
        top - 2 * reach + down,
        left - 2 * reach + right,
    )


def _add_object(
    rng: Generator, canvas: Field, objects: NDArray[np.uint8], number: int, pool: list[sprites.Sprite], scale: float
) -> None:
    height, width = objects.shape
    side = max(12, round(scale * min(height, width)))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    if rng.random() < SPRITE_SHARE:
        colours, alpha = sprite_patch(rng, pool[int(rng.integers(len(pool)))], side)
    else:
        colours, alpha = shape_patch(rng, canvas[y, x].copy(), side)
    top, left = y - alpha.shape[0] // 2, x - alpha.shape[1] // 2
    if rng.random() < 0.35:
        cast_shadow(rng, canvas, alpha, top, left)
    rows, columns, seen = blend(canvas, colours, alpha, top, left)
    objects[rows, columns][seen > 0.5] = number


def _photograph(rng: Generator, canvas: Field) -> NDArray[np.uint8]:
    """What a camera does to a scene: uneven light, a little blur, a little noise."""
    height, width, _ = canvas.shape
    if rng.random() < 0.6:
        light = (
            textures.ramp(rng, height, width) if rng.random() < 0.5 else textures.smooth_noise(rng, height, width, 2)
        )
        canvas = canvas * (1 + (light - 0.5) * rng.uniform(0.1, 0.7))[..., None]
    if rng.random() < 0.3:
        soft = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
        radius = float(rng.uniform(0.3, 1.2)) * min(height, width) / 512
        canvas = np.asarray(soft.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    if rng.random() < 0.5:
        canvas = canvas + rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(1, 9)
    return canvas.clip(0, 255).astype(np.uint8)


def render(rng: Generator, height: int, width: int, pool: list[sprites.Sprite]) -> Scene:
    """One random scene of three to nine objects, the bigger ones put down first."""
    canvas = textures.texture(rng, height, width, textures.colour(rng)).copy()
    objects = np.zeros((height, width), dtype=np.uint8)
    scales = sorted(
        (float(v) for v in np.exp(rng.uniform(np.log(0.12), np.log(0.6), int(rng.integers(3, 10))))), reverse=True
    )
    for number, scale in enumerate(scales, start=1):
        _add_object(rng, canvas, objects, number, pool, scale)
    return Scene(_photograph(rng, canvas), objects)


def fill_pool(size: int, shards: int, per_shard: int, seed: int) -> None:
    """Render training scenes into files of per_shard scenes each (N x size x size x 4: colours, object number)."""
    POOL_FOLDER.mkdir(parents=True, exist_ok=True)
    pool = sprites.load(held_out=False)
    for shard in range(shards):
        rng = np.random.default_rng([seed, size, shard])
        block = np.empty((per_shard, size, size, 4), dtype=np.uint8)
        for index in range(per_shard):
            scene = render(rng, size, size, pool)
            block[index, ..., :3], block[index, ..., 3] = scene.image, scene.objects
        path = POOL_FOLDER / f"{size}-{seed}-{shard:03d}.npy"
        with path.with_suffix(".part").open("wb") as part:
            np.save(part, block)
        path.with_suffix(".part").rename(path)
        print(f"{path.name}: {per_shard} scenes", flush=True)


def main() -> None:
    """Command line of fill_pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--per-shard", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    fill_pool(args.size, args.shards, args.per_shard, args.seed)


if __name__ == "__main__":
    main()
