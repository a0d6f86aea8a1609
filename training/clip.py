"""The documents' clip: `python -m training.clip` writes example.mp4, and example_video.png with five of its frames.

The pear of example.png moves to the right, and a striped ball to the left, in front of it: for some frames the pear is
hidden. The pear's true mask is known in every frame; the picture shows its outline.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from training.model.network import DEMO_FOLDER
from training.scenes import patches, textures
from training.scenes.textures import Field

WIDTH, HEIGHT, FPS, NUM_FRAMES = 480, 270, 24, 72
GROUND = (196, 158, 118)
CLICK = (66, 158)
"""On the pear, in the first frame."""

PEAR_SIDE, BALL_SIDE = 104, 150
SHOWN = (0, 28, 35, 43, 71)
"""The frames of the picture: the pear before, halfway, hidden, halfway again, and after."""

BALL_COLOURS = ((40, 92, 178), (236, 232, 220))
STRIPES = 6
OUTLINE = (255, 0, 200)
SHARP = 4
"""The ball is drawn so many times as large, so that its edges are smooth."""


class Frame(NamedTuple):
    """One frame, `H×W×3` uint8, and where the pear is seen in it, `H×W` bool."""

    pixels: NDArray[np.uint8]
    truth: NDArray[np.bool_]


def pear() -> Image.Image:
    """The pear of example.png, RGBA, with soft edges."""
    mask = Image.open(DEMO_FOLDER / "example_truth.png").convert("L")
    picture = Image.open(DEMO_FOLDER / "example.png").convert("RGB")
    # The outermost pixels hold some of the ground.
    picture.putalpha(mask.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(0.7)))
    cut = picture.crop(mask.getbbox())
    scale = PEAR_SIDE / max(cut.size)
    return cut.convert("RGBa").resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.BICUBIC)


def ball() -> Image.Image:
    """A ball with stripes of two colours, RGBA."""
    side = SHARP * BALL_SIDE
    picture = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(picture)
    middle = side / 2
    for stripe in range(STRIPES):
        start = 360 * stripe / STRIPES
        draw.pieslice((0, 0, side - 1, side - 1), start, start + 360 / STRIPES, fill=BALL_COLOURS[stripe % 2])
    hub = side / 9
    draw.ellipse((middle - hub, middle - hub, middle + hub, middle + hub), fill=BALL_COLOURS[1])
    return picture.convert("RGBa").resize((BALL_SIDE, BALL_SIDE), Image.Resampling.BOX)


def frames() -> Iterator[Frame]:
    """Draws the clip."""
    rng = np.random.default_rng(5)
    noise = 30 * (textures.smooth_noise(rng, HEIGHT, WIDTH, 9)[..., None] - 0.5)
    ground: Field = np.array(GROUND, dtype=np.float32) + noise
    light = (1.12 - 0.3 * textures.ramp(rng, HEIGHT, WIDTH))[..., None]
    fruit, toy, shade = pear(), ball(), _shade()
    for index in range(NUM_FRAMES):
        part = index / (NUM_FRAMES - 1)
        canvas = ground.copy()
        swing = 14 * math.sin(2 * math.pi * 1.5 * part)
        seen = _put(canvas, fruit.rotate(-swing, patches.RESAMPLE, expand=True), 62 + 356 * part, 152 - swing / 4)
        turned = toy.rotate(150 * part, patches.RESAMPLE)
        hidden = _put(canvas, turned, 372 - 264 * part, 146, shade)
        yield Frame((canvas * light).clip(0, 255).astype(np.uint8), (seen > 0.5) & (hidden < 0.5))


def _shade() -> Field:
    """How light the ball is at each pixel: round, lit from the left above."""
    y, x = (np.mgrid[0:BALL_SIDE, 0:BALL_SIDE].astype(np.float32) + 0.5) / BALL_SIDE * 2 - 1
    depth = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    shade: Field = np.clip(0.55 + 0.5 * (-0.4 * x - 0.5 * y + 0.75 * depth), 0, 1.15)[..., None].astype(np.float32)
    return shade


def _put(canvas: Field, picture: Image.Image, x: float, y: float, shade: Field | float = 1.0) -> Field:
    """Puts an RGBa picture and its shadow on the canvas, in place, its middle at x, y; returns its coverage, `H×W`."""
    left, top = math.floor(x - picture.width / 2), math.floor(y - picture.height / 2)
    # Fractions of a pixel, so that slow things do not jerk.
    shift = (1, 0, left - (x - picture.width / 2), 0, 1, top - (y - picture.height / 2))
    size = (picture.width + 1, picture.height + 1)
    moved = picture.transform(size, Image.Transform.AFFINE, shift, patches.RESAMPLE).convert("RGBA")
    array: Field = np.asarray(moved, dtype=np.float32).copy()
    if not isinstance(shade, float):
        array[:-1, :-1, :3] *= shade
    alpha = array[..., 3] * np.float32(1 / 255)
    # The same generator for each frame: the same shadow.
    patches.cast_shadow(np.random.default_rng(3), canvas, alpha, top, left)
    rows, columns, seen = patches.blend(canvas, array[..., :3], alpha, top, left)
    covered = np.zeros((HEIGHT, WIDTH), np.float32)
    covered[rows, columns] = seen
    return covered


def write_video(drawn: Sequence[Frame], path: Path) -> None:
    """Writes the clip as an H.264 mp4."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as file:
        # One thread: the same bytes each time, from the same version of the codec.
        stream: Any = file.add_stream("libx264", rate=FPS, options={"crf": "21", "preset": "veryslow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index, one in enumerate(drawn):
            frame = av.VideoFrame.from_ndarray(one.pixels, format="rgb24")
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def outlined(frame: Frame) -> Image.Image:
    """The frame with the outline of the pear's true mask."""
    mask = Image.fromarray(frame.truth.astype(np.uint8) * 255)
    grown = np.asarray(mask.filter(ImageFilter.MaxFilter(7))) > 0
    pixels = frame.pixels.copy()
    pixels[grown & ~frame.truth] = OUTLINE
    return Image.fromarray(pixels)


def write_picture(drawn: Sequence[Frame], path: Path) -> None:
    """Writes five frames side by side; the click is a dot in the first one."""
    width, height, gap = WIDTH // 2, HEIGHT // 2, 6
    strip = Image.new("RGB", (len(SHOWN) * (width + gap) - gap, height), "white")
    for place, index in enumerate(SHOWN):
        picture = outlined(drawn[index])
        if index == 0:
            x, y = CLICK
            ImageDraw.Draw(picture).ellipse((x - 7, y - 7, x + 7, y + 7), (30, 200, 60), "white", 2)
        strip.paste(picture.resize((width, height), Image.Resampling.BOX), (place * (width + gap), 0))
    strip.save(path, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=DEMO_FOLDER)
    folder: Path = parser.parse_args().folder
    drawn = list(frames())
    write_video(drawn, folder / "example.mp4")
    write_picture(drawn, folder / "example_video.png")


if __name__ == "__main__":
    main()
