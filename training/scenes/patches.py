"""What scenes are put together from: a sprite or a shape, turned and scaled, and how it is laid on a canvas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from training.scenes import sprites, textures
from training.scenes.textures import Field

PHOTO_SHARE = 0.3  # of the shapes have a photograph for a surface, as a leopard, a lawn or a wall has many colours
MARKED_SHARE = 0.45  # of the shapes have marks on them, which are their parts
RESAMPLE = Image.Resampling.BILINEAR


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


def shape_patch(rng: Generator, ground: Field, side: int, held_out: bool) -> Patch:
    """A shape in a colour that stands out from the ground, or cut out of a photograph; some with marks on it."""
    height, width = side, max(8, round(side * rng.uniform(0.35, 1.0)))
    if rng.random() < 0.5:
        height, width = width, height
    alpha = textures.shape_alpha(rng, height, width)
    base = textures.colour_unlike(rng, ground)
    if textures.photographs(held_out) and rng.random() < PHOTO_SHARE:
        surface = textures.photograph(rng, height, width, held_out).copy()
    else:
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
    number = 0
    for _ in range(int(rng.integers(1, 4))):
        side = max(8, round(min(height, width) * float(rng.uniform(0.25, 0.6))))
        top, left = int(rng.integers(max(1, height - side))), int(rng.integers(max(1, width - side)))
        mark = textures.shape_alpha(rng, side, side)
        outer = parts[top : top + side, left : left + side, 0]
        if outer[mark > 0.5].any():
            continue
        number += 1
        outer[mark > 0.5] = number
        colour = textures.colour_unlike(rng, base)
        blend(surface, textures.texture(rng, side, side, colour), mark, top, left)
        if rng.random() < 0.4 and side >= 24:
            top, left, half = top + side // 4, left + side // 4, side // 2
            window = np.s_[top : top + half, left : left + half]
            inner = textures.shape_alpha(rng, half, half) * (parts[window][..., 0] == number)
            blend(surface, textures.texture(rng, half, half, textures.colour_unlike(rng, colour)), inner, top, left)
            parts[window][..., 1][inner > 0.5] = number


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
