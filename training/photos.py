"""Photographs to put things in front of, from Debian's wallpaper packages: read where they lie, and never shipped.

What is in them is not known, so nothing of them is ever asked for. Like sprites, some are held out, by a hash of their
name.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from training.sprites import is_held_out

FOLDERS = (Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers"), Path("/usr/share/lomiri-wallpapers"))
KINDS = (".jpg", ".jpeg", ".png", ".webp")
SMALLEST_BYTES = 150_000  # less is a gradient, or a thumbnail
SIDE = 1600


@cache
def found(held_out: bool) -> tuple[Path, ...]:
    """The files of one side of the split, one of each picture: packages have some in several sizes."""
    files = (path for folder in FOLDERS if folder.is_dir() for path in sorted(folder.rglob("*")))
    kept: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() in KINDS and not path.is_symlink() and path.stat().st_size >= SMALLEST_BYTES:
            # Plasma's are named by their size, below a folder with the picture's name.
            name = path.parents[2].name if path.parent.name == "images" else path.stem
            kept.setdefault(name, path)
    return tuple(path for name, path in kept.items() if is_held_out(f"photo-{name}") == held_out)


@cache
def _loaded(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def ground(rng: Generator, height: int, width: int, held_out: bool) -> NDArray[np.float32]:
    """A random part of a random photograph, at least a third of its shorter side (height × width × 3, 0 to 255)."""
    files = found(held_out)
    picture = _loaded(files[int(rng.integers(len(files)))])
    side = round(min(picture.shape[:2]) * float(rng.uniform(0.35, 1.0)))
    rows, columns = max(1, round(side * min(1.0, height / width))), max(1, round(side * min(1.0, width / height)))
    top = int(rng.integers(picture.shape[0] - rows + 1))
    left = int(rng.integers(picture.shape[1] - columns + 1))
    part = Image.fromarray(picture[top : top + rows, left : left + columns])
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
