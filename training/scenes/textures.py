"""Colours, textures and outlines, drawn by code from a random generator; and photographs as surfaces."""

from __future__ import annotations

import colorsys
import math
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.scenes.sprites import is_held_out

Field = NDArray[np.float32]


def colour(rng: Generator) -> Field:
    """A random colour, 0 to 255, of any hue and mostly neither black nor white."""
    saturation = float(rng.uniform(0.0, 1.0))
    rgb = colorsys.hsv_to_rgb(float(rng.random()), saturation, float(rng.uniform(0.1, 1.0)))
    return np.array(rgb, dtype=np.float32) * 255


def colour_unlike(rng: Generator, other: Field, distance: float = 90.0) -> Field:
    """A random colour that stands out from another one."""
    for _ in range(20):
        found = colour(rng)
        if float(np.linalg.norm(found - other)) > distance:
            break
    return found


def smooth_noise(rng: Generator, height: int, width: int, cells: int) -> Field:
    """Noise of about `cells` bumps across, 0 to 1."""
    small = Image.fromarray(rng.random((cells + 1, cells + 1), dtype=np.float32))
    noise: Field = np.clip(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)), 0, 1).astype(np.float32)
    return noise


def ramp(rng: Generator, height: int, width: int) -> Field:
    """A linear gradient in a random direction, 0 to 1."""
    angle = rng.uniform(0, 2 * math.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    mix: Field = (0.5 + 0.7 * (math.cos(angle) * x + math.sin(angle) * y)).clip(0, 1).astype(np.float32)
    return mix


def waves(rng: Generator, height: int, width: int) -> Field:
    """Stripes or, with a second direction, checks; hard or soft edged, 0 to 1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, math.pi), max(height, width) / rng.uniform(3, 14)
    along = np.sin((math.cos(angle) * x + math.sin(angle) * y) * (2 * math.pi / period))
    if rng.random() < 0.4:
        along = along * np.sin((math.sin(angle) * x - math.cos(angle) * y) * (2 * math.pi / period))
    sharpness = rng.choice([1.0, 8.0])
    mix: Field = (0.5 + 0.5 * np.tanh(along * sharpness)).astype(np.float32)
    return mix


def grain(rng: Generator, height: int, width: int) -> Field:
    """Noise of several sizes on top of each other, as of stone, grass or cloth, 0 to 1."""
    cells = int(rng.integers(2, 8))
    layers = [smooth_noise(rng, height, width, min(cells * 3**i, height, width)) / 1.6**i for i in range(4)]
    total = np.sum(layers, axis=0)
    mix: Field = ((total - total.min()) / (np.ptp(total) + 1e-6)).astype(np.float32)
    return mix


def texture(rng: Generator, height: int, width: int, base: Field) -> Field:
    """A surface of the base colour: plain, shaded, patterned or rough (height x width x 3, 0 to 255)."""
    kind = rng.choice(["plain", "ramp", "noise", "waves", "grain"], p=[0.2, 0.25, 0.15, 0.2, 0.2])
    if kind == "plain":
        return np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    second = base + (colour(rng) - base) * rng.uniform(0.1, 0.6)
    if kind == "noise":
        mix = smooth_noise(rng, height, width, int(rng.integers(2, 8)))
    else:
        mix = {"ramp": ramp, "waves": waves, "grain": grain}[str(kind)](rng, height, width)
    return (base + (second - base) * mix[..., None]).astype(np.float32)


def _outline(rng: Generator, kind: str) -> list[tuple[float, float]]:
    """A closed outline within the unit circle."""
    count = {"polygon": int(rng.integers(3, 8)), "star": 2 * int(rng.integers(4, 9))}.get(kind, 72)
    angles = np.arange(count) * (2 * math.pi / count) + rng.uniform(0, 2 * math.pi)
    radii = np.ones(count)
    if kind == "polygon":
        angles = angles + rng.uniform(-0.3, 0.3, count) * (2 * math.pi / count)
    elif kind == "star":
        radii[1::2] = rng.uniform(0.35, 0.75)
    elif kind == "blob":
        for wave in range(2, 6):
            radii = radii + rng.uniform(0, 0.5) / wave * np.sin(wave * angles + rng.uniform(0, 6.3))
        radii = radii / radii.max()
    return [(float(r * math.cos(a)), float(r * math.sin(a))) for r, a in zip(radii, angles, strict=True)]


def _curve(rng: Generator, draw: ImageDraw.ImageDraw, side: int) -> None:
    """A thick open curve: a shape that is thin everywhere."""
    t = np.linspace(0, 1, 60)
    knots = rng.uniform(0.12, 0.88, (4, 2)) * side
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    width = side * rng.uniform(0.08, 0.2)
    for x, y in weights @ knots:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)


def shape_alpha(rng: Generator, height: int, width: int) -> Field:
    """The coverage of one random shape, 0 to 1; some have a hole, some are thin."""
    side = 2 * max(height, width)
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    kind = str(rng.choice(["round", "polygon", "star", "blob", "box", "curve"], p=[0.2, 0.2, 0.12, 0.25, 0.15, 0.08]))
    if kind == "curve":
        _curve(rng, draw, side)
    elif kind == "box":
        draw.rounded_rectangle((2, 2, side - 2, side - 2), radius=side * rng.uniform(0, 0.3), fill=255)
    else:
        draw.polygon([((x + 1) * side / 2, (y + 1) * side / 2) for x, y in _outline(rng, kind)], fill=255)
    if kind != "curve" and rng.random() < 0.2:
        inner, middle = side * rng.uniform(0.15, 0.3), side / 2
        draw.ellipse((middle - inner, middle - inner, middle + inner, middle + inner), fill=0)
    small = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) * np.float32(1 / 255)


# ---- photographs, from Debian's wallpaper packages: read where they lie, and never shipped

# What is in them is not known, so nothing of them is ever asked for. Like sprites, some are held out, by a hash of
# their name.

PHOTO_FOLDERS = (Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers"), Path("/usr/share/lomiri-wallpapers"))
PHOTO_KINDS = (".jpg", ".jpeg", ".png", ".webp")
SMALLEST_BYTES = 150_000  # less is a gradient, or a thumbnail
PHOTO_SIDE = 1600


@cache
def photographs(held_out: bool) -> tuple[Path, ...]:
    """The files of one side of the split, one of each picture: packages have some in several sizes."""
    files = (path for folder in PHOTO_FOLDERS if folder.is_dir() for path in sorted(folder.rglob("*")))
    kept: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() in PHOTO_KINDS and not path.is_symlink() and path.stat().st_size >= SMALLEST_BYTES:
            # Plasma's are named by their size, below a folder with the picture's name.
            name = path.parents[2].name if path.parent.name == "images" else path.stem
            kept.setdefault(name, path)
    return tuple(path for name, path in kept.items() if is_held_out(f"photo-{name}") == held_out)


@cache
def _loaded(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    return np.asarray(picture)


def photograph(rng: Generator, height: int, width: int, held_out: bool) -> NDArray[np.float32]:
    """A random part of a random photograph, at least a third of its shorter side (height × width × 3, 0 to 255)."""
    files = photographs(held_out)
    picture = _loaded(files[int(rng.integers(len(files)))])
    side = round(min(picture.shape[:2]) * float(rng.uniform(0.35, 1.0)))
    rows, columns = max(1, round(side * min(1.0, height / width))), max(1, round(side * min(1.0, width / height)))
    top = int(rng.integers(picture.shape[0] - rows + 1))
    left = int(rng.integers(picture.shape[1] - columns + 1))
    part = Image.fromarray(picture[top : top + rows, left : left + columns])
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
