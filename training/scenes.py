"""Scenes with exact masks: shapes and sprites on textures and photographs, overlapping, shaded, lit, noisy, blurred.

Each pixel belongs to an object, perhaps to a part of it (a wheel of a train, the hat on a head), and perhaps to a part
of that part: what a click there may mean.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from training import photos, sprites, textures
from training.textures import Field

POOL_FOLDER = Path(__file__).resolve().parent / "runs" / "pool"
SPRITE_SHARE = 0.6
PHOTO_SHARE = 0.4
MARKED_SHARE = 0.45  # of the shapes have marks on them, which are their parts
ATTACHED_SHARE = 0.25  # of the objects carry another one
LEVELS = 3
MOST_NUMBERS = 255
RESAMPLE = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Scene:
    """A picture and, for each pixel, what is seen there.

    Attributes:
        image: H×W×3.
        labels: H×W×3, the numbers of the object, of its part and of the part of that; 0 is none. No number stands for
            two things of the same level.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @property
    def objects(self) -> NDArray[np.uint8]:
        """The whole objects' numbers alone."""
        return self.labels[..., 0]


class Patch(NamedTuple):
    """Something to put on a canvas: its colours, its coverage (0 to 1), and its parts and sub-parts (H×W×2)."""

    colours: Field
    alpha: Field
    parts: NDArray[np.uint8]


def sprite_patch(rng: Generator, sprite: sprites.Sprite, side: int) -> Patch:
    """A sprite, mirrored, turned and scaled."""
    picture, parts = Image.fromarray(sprite[..., :4]), [Image.fromarray(sprite[..., level]) for level in (4, 5)]
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        parts = [level.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for level in parts]
    scale = side / max(picture.size)
    size = (max(8, round(picture.width * scale)), max(8, round(picture.height * scale)))
    picture = picture.convert("RGBa").resize(size, Image.Resampling.BICUBIC)
    parts = [level.resize(size, Image.Resampling.NEAREST) for level in parts]
    if rng.random() < 0.5:
        turn = float(rng.uniform(-60, 60))
        picture = picture.rotate(turn, RESAMPLE, expand=True)
        parts = [level.rotate(turn, Image.Resampling.NEAREST, expand=True) for level in parts]
    array = np.asarray(picture.convert("RGBA"), dtype=np.float32)
    return Patch(array[..., :3], array[..., 3] * np.float32(1 / 255), np.dstack([np.asarray(level) for level in parts]))


def shape_patch(rng: Generator, ground: Field, side: int) -> Patch:
    """A shape in a colour that stands out from the ground, some with marks on it."""
    height, width = side, max(8, round(side * rng.uniform(0.35, 1.0)))
    if rng.random() < 0.5:
        height, width = width, height
    alpha = textures.shape_alpha(rng, height, width)
    base = textures.colour_unlike(rng, ground)
    surface = textures.texture(rng, height, width, base).copy()
    parts = np.zeros((height, width, 2), np.uint8)
    if rng.random() < MARKED_SHARE:
        _mark(rng, surface, parts, base)
    if rng.random() < 0.5:
        turn = float(rng.uniform(0, 180))
        alpha = np.asarray(Image.fromarray(alpha).rotate(turn, RESAMPLE, expand=True))
        flat = Image.fromarray(surface.clip(0, 255).astype(np.uint8)).rotate(turn, RESAMPLE, expand=True)
        levels = [Image.fromarray(parts[..., level]) for level in (0, 1)]
        turned = [np.asarray(level.rotate(turn, Image.Resampling.NEAREST, expand=True)) for level in levels]
        surface, parts = np.asarray(flat, dtype=np.float32), np.dstack(turned)
    return Patch(surface, alpha, parts)


def _mark(rng: Generator, surface: Field, parts: NDArray[np.uint8], base: Field) -> None:
    """Draws one to three marks on a surface, in place, some with a smaller mark inside."""
    height, width, _ = surface.shape
    free = np.ones((height, width), bool)
    number = 0
    for _ in range(int(rng.integers(1, 4))):
        side = max(8, round(min(height, width) * float(rng.uniform(0.25, 0.6))))
        top, left = int(rng.integers(max(1, height - side))), int(rng.integers(max(1, width - side)))
        window = np.s_[top : top + side, left : left + side]
        mark = textures.shape_alpha(rng, side, side)[: surface[window].shape[0], : surface[window].shape[1]]
        seen = mark > 0.5
        if not free[window][seen].all():
            continue
        free[window][seen] = False
        colour = textures.colour_unlike(rng, base)
        surface[window] += (textures.texture(rng, mark.shape[0], mark.shape[1], colour) - surface[window]) * mark[
            ..., None
        ]
        number += 1
        parts[window][..., 0][seen] = number
        if rng.random() < 0.4 and side >= 24:
            half = side // 2
            inner = textures.shape_alpha(rng, half, half)
            inside = np.s_[top + side // 4 : top + side // 4 + half, left + side // 4 : left + side // 4 + half]
            inner = inner[: surface[inside].shape[0], : surface[inside].shape[1]] * (parts[inside][..., 0] == number)
            other = textures.colour_unlike(rng, colour)
            surface[inside] += (textures.texture(rng, inner.shape[0], inner.shape[1], other) - surface[inside]) * inner[
                ..., None
            ]
            parts[inside][..., 1][inner > 0.5] = number


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


class Painter:
    """Puts objects on a canvas, the first ones at the back, and keeps their labels.

    Args:
        rng: for everything that is left to chance.
        canvas: the ground, H×W×3, which is painted over.
        pool: sprites to take.
    """

    def __init__(self, rng: Generator, canvas: Field, pool: list[sprites.Sprite]) -> None:
        self.labels = np.zeros((*canvas.shape[:2], LEVELS), dtype=np.uint8)
        self._rng, self._canvas, self._pool = rng, canvas, pool
        self._used = [0] * LEVELS

    def add(self, scale: float) -> None:
        """Puts down an object of that share of the canvas' shorter side; some carry a smaller one as their part."""
        rng = self._rng
        height, width, _ = self._canvas.shape
        side = max(12, round(scale * min(height, width)))
        y, x = int(rng.integers(height)), int(rng.integers(width))
        patch = self._patch(y, x, side)
        top, left = y - patch.alpha.shape[0] // 2, x - patch.alpha.shape[1] // 2
        if rng.random() < 0.35:
            cast_shadow(rng, self._canvas, patch.alpha, top, left)
        number = self._numbers(0, 1)
        self._put(patch, top, left, (number, self._numbers(1, int(patch.parts[..., 0].max())), None))
        if rng.random() < ATTACHED_SHARE and side >= 40:
            self._attach(number, y, x, side)

    def _attach(self, number: int, y: int, x: int, side: int) -> None:
        """Puts a smaller thing on an object, which is a part of it then; its own parts are parts of a part."""
        rng = self._rng
        reach = side // 3
        y, x = y + int(rng.integers(-reach, reach + 1)), x + int(rng.integers(-reach, reach + 1))
        height, width, _ = self._canvas.shape
        if not (0 <= y < height and 0 <= x < width):
            return
        patch = self._patch(y, x, max(12, round(side * float(rng.uniform(0.25, 0.55)))))
        top, left = y - patch.alpha.shape[0] // 2, x - patch.alpha.shape[1] // 2
        self._put(patch, top, left, (number, None, self._numbers(1, 1)))

    def _patch(self, y: int, x: int, side: int) -> Patch:
        rng = self._rng
        if rng.random() < SPRITE_SHARE:
            return sprite_patch(rng, self._pool[int(rng.integers(len(self._pool)))], side)
        return shape_patch(rng, self._canvas[y, x].copy(), side)

    def _put(self, patch: Patch, top: int, left: int, numbers: tuple[int, int | None, int | None]) -> None:
        """Paints a patch.

        Args:
            patch: what.
            top: its first row.
            left: its first column.
            numbers: of the object; the first of its parts, if the patch's parts are those; or else of the one part that
                the whole patch is.
        """
        number, first_part, as_part = numbers
        rows, columns, coverage = blend(self._canvas, patch.colours, patch.alpha, top, left)
        start = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        own = patch.parts[start]
        seen = coverage > 0.5
        labels = self.labels[rows, columns]
        labels[seen] = 0
        labels[..., 0][seen] = number
        if as_part is None:
            shallow, deep = own[..., 0], own[..., 1]
            if first_part:
                labels[..., 1][seen & (shallow > 0)] = first_part + shallow[seen & (shallow > 0)] - 1
        else:
            deep = own[..., 0]
            labels[..., 1][seen] = as_part
        first_deep = self._numbers(2, int(deep.max()) if deep.size else 0)
        if first_deep:
            labels[..., 2][seen & (deep > 0)] = first_deep + deep[seen & (deep > 0)] - 1

    def _numbers(self, level: int, count: int) -> int:
        """The first of so many new numbers; 0 if there are none, or no more of them."""
        if not count or self._used[level] + count > MOST_NUMBERS:
            return 0
        self._used[level] += count
        return self._used[level] - count + 1


def _photograph(rng: Generator, canvas: Field) -> NDArray[np.uint8]:
    """What a camera does to a scene: uneven light, a little blur, a little noise, JPEG."""
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
    picture = canvas.clip(0, 255).astype(np.uint8)
    return _compressed(picture, int(rng.integers(25, 91))) if rng.random() < 0.4 else picture


def _compressed(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What JPEG leaves of it."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    with Image.open(file) as opened:
        return np.asarray(opened)


def render(rng: Generator, height: int, width: int, pool: list[sprites.Sprite]) -> Scene:
    """One random scene of three to nine objects, the bigger ones put down first."""
    if photos.found() and rng.random() < PHOTO_SHARE:
        canvas = photos.ground(rng, height, width).copy()
    else:
        canvas = textures.texture(rng, height, width, textures.colour(rng)).copy()
    painter = Painter(rng, canvas, pool)
    scales = np.exp(rng.uniform(np.log(0.12), np.log(0.6), int(rng.integers(3, 10))))
    for scale in sorted(map(float, scales), reverse=True):
        painter.add(scale)
    return Scene(_photograph(rng, canvas), painter.labels)


def fill_pool(size: int, shards: int, per_shard: int, seed: int) -> None:
    """Render training scenes into files of per_shard scenes each (N×size×size×6: colours, labels)."""
    POOL_FOLDER.mkdir(parents=True, exist_ok=True)
    pool = sprites.load(held_out=False)
    for shard in range(shards):
        rng = np.random.default_rng([seed, size, shard])
        block = np.empty((per_shard, size, size, 3 + LEVELS), dtype=np.uint8)
        for index in range(per_shard):
            scene = render(rng, size, size, pool)
            block[index, ..., :3], block[index, ..., 3:] = scene.image, scene.labels
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
