"""Pictures for people to look at: an image with its prompt, then each mask drawn over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Mask = NDArray[np.bool_]
COLOUR = np.array([255, 0, 200])
OPACITY = 0.55


def strip(
    image: NDArray[np.uint8], click: tuple[float, float], masks: Sequence[Mask], captions: Sequence[str], side: int
) -> Image.Image:
    """The image (H×W×3) with the click (x, y), then once for each mask (H×W), `side` pixels wide each."""
    scale = side / max(image.shape[:2])
    row = Image.new("RGB", ((1 + len(masks)) * side, side))
    for column, (mask, caption) in enumerate(zip([None, *masks], ["", *captions], strict=True)):
        shown = image.astype(np.float32)
        if mask is not None:
            shown[mask] = shown[mask] * (1 - OPACITY) + COLOUR * OPACITY
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        tile = Image.fromarray(shown.astype(np.uint8)).resize(size)
        draw = ImageDraw.Draw(tile)
        x, y = click[0] * scale, click[1] * scale
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(255, 255, 0), outline=(0, 0, 0))
        draw.text((4, 2), caption, fill=(255, 255, 255), stroke_width=2, stroke_fill=(0, 0, 0))
        row.paste(tile, (column * side, 0))
    return row


def save(strips: Sequence[Image.Image], path: Path) -> None:
    """Write strips of one width below each other as one picture."""
    page = Image.new("RGB", (strips[0].width, sum(each.height for each in strips)))
    top = 0
    for each in strips:
        page.paste(each, (0, top))
        top += each.height
    page.save(path)
