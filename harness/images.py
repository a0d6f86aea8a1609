"""Images made by code: shapes on a gradient, so that a prompt has something to find, and smooth noise; their IoU."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image with ellipses and rectangles on a noisy gradient."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, width)[None, :, None] + np.linspace(0, 80, height)[:, None, None]
    noise = rng.normal(0, 8, (height, width, 3))
    image = Image.fromarray((ramp + noise + 30).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for index in range(5):
        x0, y0 = rng.integers(0, width * 3 // 4 + 1), rng.integers(0, height * 3 // 4 + 1)
        x1, y1 = x0 + rng.integers(1, width // 3 + 2), y0 + rng.integers(1, height // 3 + 2)
        shape = draw.ellipse if index % 2 else draw.rectangle
        shape((int(x0), int(y0), int(x1), int(y1)), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return image


def noise(width: int, height: int, *seed: int) -> bytes:
    """A PNG file of smooth noise; a new seed is a new image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    return encoded(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), compress_level=1)


def pixels(image: bytes) -> NDArray[np.uint8]:
    """The `H×W×3` pixels of an image file."""
    return np.array(Image.open(io.BytesIO(image)).convert("RGB"))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Intersection over union of two masks."""
    a, b = a.astype(bool), b.astype(bool)
    return float((a & b).sum() / max(1, (a | b).sum()))
