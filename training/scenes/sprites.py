"""Cut-out pictures with exact alpha: colour emoji and clip art, split into a training and a held-out part.

Both come from Debian packages (fonts-noto-color-emoji, openclipart-png). They are read where the packages put them
and are never shipped. Where they are drawn in flat colours, their parts are known too. The split is by a hash of
a family name, so that near twins (clock_01, clock_02; neighbouring emoji) fall on the same side.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import pickle
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Sprite = NDArray[np.uint8]
"""H×W×6: red, green, blue, alpha, number of the part, number of the sub-part."""

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_SIZE = 109  # the only size the bitmap font holds
EMOJI_RANGES = ((0x1F300, 0x1F6FF), (0x1F900, 0x1FAFF), (0x2600, 0x27BF))
EMOJI_FAMILY = 8
CLIPART_FOLDER = Path("/usr/share/openclipart/png")
MAX_BYTES = 200_000  # some are posters of hundreds of megapixels
MAX_PIXELS = 2000  # wide or high
MAX_SIDE = 224
HELD_OUT_IN = 8
CACHE = Path(__file__).resolve().parents[1] / "runs" / "sprites.pickle"


def is_held_out(family: str) -> bool:
    """Whether a family of sprites is kept from training."""
    return hashlib.sha256(family.encode()).digest()[0] % HELD_OUT_IN == 0


def emoji() -> Iterator[tuple[str, Image.Image]]:
    """Every emoji of one code point, with its family name."""
    font = ImageFont.truetype(str(EMOJI_FONT), EMOJI_SIZE)
    for first, last in EMOJI_RANGES:
        for code in range(first, last + 1):
            canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
            ImageDraw.Draw(canvas).text((8, 8), chr(code), font=font, embedded_color=True)
            yield f"emoji-{code // EMOJI_FAMILY:x}", canvas


def clipart() -> Iterator[tuple[str, Image.Image]]:
    """Every clip art picture, with its name less digits as the family."""
    for path in sorted(CLIPART_FOLDER.rglob("*.png")):
        if path.stat().st_size > MAX_BYTES:
            continue
        with Image.open(path) as opened:
            if max(opened.size) <= MAX_PIXELS:
                yield "clipart-" + re.sub(r"[\d_\-]+", "", path.stem)[:12], opened.convert("RGBA")


def tidy(picture: Image.Image) -> Sprite | None:
    """The picture cut to its alpha and scaled, or None where it makes no clear solid object."""
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    width, height = picture.size
    if min(width, height) < 40 or max(width, height) > 4 * min(width, height):
        return None
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    drawing = np.asarray(picture, dtype=np.uint8)
    if not 0.3 < (drawing[..., 3] > 127).mean() < 0.97:
        return None
    sprite: Sprite = np.dstack([drawing, *find_parts(drawing)])
    return sprite


def _tidy_member(member: tuple[str, Image.Image]) -> tuple[str, Sprite | None]:
    return member[0], tidy(member[1])


def collect() -> dict[bool, list[Sprite]]:
    """All usable sprites: under False those for training, under True the held-out ones."""
    found: dict[bool, list[Sprite]] = {False: [], True: []}
    seen: set[bytes] = set()
    with multiprocessing.Pool() as workers:
        for family, sprite in workers.imap(_tidy_member, chain(emoji(), clipart()), chunksize=16):
            if sprite is None:
                continue
            key = hashlib.sha256(sprite.tobytes()).digest()
            if key not in seen:
                seen.add(key)
                found[is_held_out(family)].append(sprite)
    return found


@cache
def load(held_out: bool) -> list[Sprite]:
    """The sprites of one side of the split, collected once and then kept in training/runs/."""
    if not CACHE.exists():
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        CACHE.write_bytes(pickle.dumps(collect()))
    found: dict[bool, list[Sprite]] = pickle.loads(CACHE.read_bytes())
    return found[held_out]


# ---- parts of flat drawings

# Regions of one colour with a clear edge all around, and what lies inside of them: a wheel of a train, the window of
# its cab, the spots of a mushroom. Bands that come from cutting a gradient into colours are none: across their borders
# the colour hardly changes.

Region = NDArray[np.bool_]

COLOURS = 8
SMALLEST, LARGEST = 0.02, 0.7  # of the drawing's area
STEP = 36.0  # how much the colour changes across an edge, of 255, in the channel that changes most
CLEAR = 0.8  # of the border must be such an edge
REACH = 2  # pixels inside and outside of a border whose colours are compared
NESTED = 0.95  # of a region that must lie inside another to be a part of it


class Parts(NamedTuple):
    """Maps of a drawing: which part, and which sub-part, each pixel belongs to; 0 is none."""

    parts: NDArray[np.uint8]
    subparts: NDArray[np.uint8]


def find_parts(sprite: NDArray[np.uint8]) -> Parts:
    """The parts of a drawing (H×W×4, RGBA), numbered from 1, and those inside of them, numbered on from there."""
    solid = sprite[..., 3] > 127
    outer: list[Region] = []
    inner: list[Region] = []
    # The largest first, so that what lies inside comes after what it lies in.
    for region in sorted(_regions(sprite[..., :3], solid), key=lambda region: -int(region.sum())):
        if not _is_clear(sprite[..., :3], solid, region):
            continue
        holders = [held for held in outer if (held & region).sum() >= NESTED * region.sum()]
        if not holders and not any((held & region).any() for held in outer):
            outer.append(region)
        elif len(holders) == 1 and not any((held & region).any() for held in inner):
            inner.append(region)
    maps = Parts(np.zeros(solid.shape, np.uint8), np.zeros(solid.shape, np.uint8))
    for number, region in enumerate([*outer, *inner], start=1):
        maps[number > len(outer)][region] = number
    return maps


def _regions(colours: NDArray[np.uint8], solid: Region) -> list[Region]:
    """Connected regions of about one colour, with what they enclose."""
    flat = Image.fromarray(colours).quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    found = []
    for colour in np.unique(np.asarray(flat)):
        # Opened: the thin transitions between two colours are regions of neither.
        labels, count = ndimage.label(ndimage.binary_opening((np.asarray(flat) == colour) & solid))
        for number in range(1, count + 1):
            region = ndimage.binary_fill_holes(ndimage.binary_dilation(labels == number)) & solid
            if SMALLEST < region.sum() / solid.sum() < LARGEST:
                found.append(region)
    return found


def _is_clear(colours: NDArray[np.uint8], solid: Region, region: Region) -> bool:
    """Whether the colour changes at once nearly everywhere along the region's border; the drawing's own end counts."""
    core = ndimage.binary_erosion(region, iterations=REACH)
    beyond = solid & ~ndimage.binary_dilation(region, iterations=REACH)
    ring = ndimage.binary_dilation(region) & ~region
    if not core.any():
        return False
    inside = colours[tuple(ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True))]
    changes = np.full(region.shape, 255.0)
    if beyond.any():
        away, nearest = ndimage.distance_transform_edt(~beyond, return_indices=True)
        outside = colours[tuple(nearest)]
        step = np.abs(inside.astype(np.float32) - outside).max(axis=2)
        # Far from anything beyond, the drawing ends here.
        changes = np.where(away <= 2 * REACH, step, 255.0)
    return bool((changes[ring] >= STEP).mean() >= CLEAR)


def main() -> None:
    """Collect the sprites and say how many there are."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"{len(load(False))} sprites for training, {len(load(True))} held out")


if __name__ == "__main__":
    main()
