"""Scenes with exact masks: shapes and sprites on textures and photographs, overlapping, shaded, lit, noisy, blurred.

Each pixel belongs to an object, perhaps to a part of it (a wheel of a train, the hat on a head), and perhaps to a part
of that part: what a click there may mean.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from training.scenes import sprites, textures
from training.scenes.patches import Patch, blend, cast_shadow, shape_patch, sprite_patch
from training.scenes.textures import Field

POOL_FOLDER = Path(__file__).resolve().parents[1] / "runs" / "pool"
SPRITE_SHARE = 0.6
PHOTO_SHARE = 0.4
ATTACHED_SHARE = 0.25  # of the objects carry another one
LEVELS = 3
MOST_NUMBERS = 255


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


class Painter:
    """Puts objects on a canvas, the first ones at the back, and keeps their labels.

    Args:
        rng: for everything that is left to chance.
        canvas: the ground, H×W×3, which is painted over.
        held_out: takes the held-out sprites and photographs instead of those for training.
    """

    def __init__(self, rng: Generator, canvas: Field, held_out: bool) -> None:
        self.labels = np.zeros((*canvas.shape[:2], LEVELS), dtype=np.uint8)
        self._rng, self._canvas, self._held_out = rng, canvas, held_out
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
        self._put(patch, top, left, number)
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
        self._put(patch, top, left, number, self._numbers(1, 1))

    def _patch(self, y: int, x: int, side: int) -> Patch:
        rng = self._rng
        if rng.random() < SPRITE_SHARE:
            pool = sprites.load(self._held_out)
            return sprite_patch(rng, pool[int(rng.integers(len(pool)))], side)
        return shape_patch(rng, self._canvas[y, x].copy(), side, self._held_out)

    def _put(self, patch: Patch, top: int, left: int, number: int, as_part: int = 0) -> None:
        """Paints a patch.

        Args:
            patch: what.
            top: its first row.
            left: its first column.
            number: of the object.
            as_part: the number of its part that the whole patch is; what the patch has of parts are parts of that then.
        """
        rows, columns, coverage = blend(self._canvas, patch.colours, patch.alpha, top, left)
        own = patch.parts[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        seen = coverage > 0.5
        labels = self.labels[rows, columns]
        labels[seen] = (number, as_part, 0)
        for level, local in zip((2,) if as_part else (1, 2), np.moveaxis(own, 2, 0), strict=False):
            if first := self._numbers(level, int(local.max(initial=0))):
                marked = seen & (local > 0)
                labels[..., level][marked] = first + local[marked] - 1

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


def render(rng: Generator, height: int, width: int, held_out: bool) -> Scene:
    """One random scene of three to nine objects, the bigger ones put down first."""
    if textures.photographs(held_out) and rng.random() < PHOTO_SHARE:
        canvas = textures.photograph(rng, height, width, held_out).copy()
    else:
        canvas = textures.texture(rng, height, width, textures.colour(rng)).copy()
    painter = Painter(rng, canvas, held_out)
    scales = np.exp(rng.uniform(np.log(0.12), np.log(0.6), int(rng.integers(3, 10))))
    for scale in sorted(map(float, scales), reverse=True):
        painter.add(scale)
    return Scene(_photograph(rng, canvas), painter.labels)


def fill_pool(size: int, shards: int, per_shard: int, seed: int) -> None:
    """Render training scenes into files of per_shard scenes each (N×size×size×6: colours, labels)."""
    POOL_FOLDER.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        rng = np.random.default_rng([seed, size, shard])
        block = np.empty((per_shard, size, size, 3 + LEVELS), dtype=np.uint8)
        for index in range(per_shard):
            scene = render(rng, size, size, held_out=False)
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
