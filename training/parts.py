"""Parts of flat drawings: regions of one colour with a clear edge all around, and what lies inside of them.

A wheel of a train, the window of its cab, the spots of a mushroom. Bands that come from cutting a gradient into
colours are none: across their borders the colour hardly changes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

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
