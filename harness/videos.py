"""Clips made by code, as files."""

import io
import zipfile
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.images import encoded

Pixels = NDArray[np.uint8]


def squares(count: int, height: int = 120, width: int = 160, seed: int = 5) -> list[Pixels]:
    """Two squares over noise: one moves, and is behind the other for some frames. `H×W×3` RGB each."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 90, (height, width, 3), np.uint8)
    frames = []
    for index in range(count):
        frame = ground.copy()
        left = width // 16 + (width * index // 32) % width
        frame[height // 3 : 2 * height // 3, left : left + width // 5] = (250, 60, 20)
        frame[height // 6 : 5 * height // 6, 9 * width // 16 : 11 * width // 16] = (30, 120, 240)
        frames.append(frame)
    return frames


def zipped(frames: Sequence[Pixels]) -> bytes:
    """A zip of PNGs: the frames as they are, to the bit."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pictures:
        for index, frame in enumerate(frames):
            pictures.writestr(zipfile.ZipInfo(f"{index}.png"), encoded(Image.fromarray(frame)))
    return buffer.getvalue()


def mp4(frames: Sequence[Pixels], rate: int = 10, container: dict[str, str] | None = None, **options: str) -> bytes:
    """An mp4 of H.264, at `rate` frames a second; `options` are the encoder's."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=container or {}) as output:
        stream: Any = output.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, rate)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            # The stream has another time base once the first packet is written.
            frame.pts, frame.time_base = index, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def sound(seconds: float = 0.5) -> bytes:
    """A WAV-like mp4 without pictures: sound alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream: Any = output.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, int(16_000 * seconds)), np.float32), "fltp", "mono")
        silence.rate, silence.pts = 16_000, 0
        output.mux(stream.encode(silence))
        output.mux(stream.encode())
    return buffer.getvalue()
