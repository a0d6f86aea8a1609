"""Compares the service with the plain way to serve SAM 2, on the bundled model; `make bench` runs it.

The plain way: `set_image`, `predict`, and `str(array.tolist())`, one request after the other, in one process and
without HTTP, which flatters it. Both answer the same requests with the same weights, in turns; the table has medians
and their ratio. Nothing is asserted: read the table.
"""

import io
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor

from deployments.model.checkpoints import load_model
from deployments.settings import BUNDLED_MODEL_ID, ModelSettings

ROOT = Path(__file__).resolve().parent.parent
PORT = 18473
URL = f"http://127.0.0.1:{PORT}"
ROUNDS = 5
SIZES = [(640, 480), (1920, 1080)]


@contextmanager
def service() -> Iterator[None]:
    """The service, as `make serve` starts it."""
    command = [
        sys.executable,
        "-m",
        "deployments",
        "--config",
        str(ROOT / "cluster" / "local.yaml"),
        "--port",
        str(PORT),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            if not any(line.startswith("ready:") for line in process.stdout):
                raise SystemExit("the service did not start")
            yield
        finally:
            process.terminate()
            process.wait(60)


def picture(width: int, height: int, seed: int) -> bytes:
    """A PNG of smooth noise; a new seed is a new image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def plain(predictor: SAM2ImagePredictor, image: bytes, return_logits: bool) -> int:
    """The plain way; returns the length of its answer."""
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    predictor.set_image(pixels)
    height, width = pixels.shape[:2]
    masks, scores, logits = predictor.predict(
        np.array([[width / 2, height / 2]]), np.array([1]), return_logits=return_logits
    )
    return sum(len(str(array.tolist())) for array in (masks, scores, logits))


def served(client: httpx.Client, image: bytes, size: tuple[int, int], return_logits: bool) -> int:
    """The service; returns the length of its answer."""
    fields = {
        "point_coords": f"[[{size[0] / 2},{size[1] / 2}]]",
        "point_labels": "[1]",
        "return_logits": str(return_logits),
    }
    response = client.post("/segment-anything-2", data=fields, files={"image": image})
    response.raise_for_status()
    return len(response.content)


def seconds(call: Callable[[], int]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    if call() <= 0:
        raise SystemExit("an empty answer")
    return time.perf_counter() - started


def compare(
    predictor: SAM2ImagePredictor, client: httpx.Client, size: tuple[int, int], return_logits: bool
) -> tuple[float, float]:
    """Median seconds of the plain way and of the service, in turns."""
    plain_s, served_s = [], []
    for seed in range(ROUNDS + 1):
        image = picture(*size, seed)
        plain_s.append(seconds(partial(plain, predictor, image, return_logits)))
        served_s.append(seconds(partial(served, client, image, size, return_logits)))
    # The first round warms both up.
    return statistics.median(plain_s[1:]), statistics.median(served_s[1:])


def main() -> None:
    """Prints the table."""
    predictor = SAM2ImagePredictor(load_model(ModelSettings(model_id=BUNDLED_MODEL_ID), lambda *_: None))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(f"{ROUNDS} rounds in turns, a new image in each request, one client")
    print("| image | answer | plain, median s | service, median s | plain ÷ service |")
    print("|---|---|---|---|---|")
    with service(), httpx.Client(base_url=URL, timeout=300) as client:
        for size in SIZES:
            for return_logits in (True, False):
                plain_s, served_s = compare(predictor, client, size, return_logits)
                kind = "logits" if return_logits else "0/1 masks"
                ratio = plain_s / served_s
                print(f"| {size[0]}×{size[1]} | {kind} | {plain_s:.2f} | {served_s:.2f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
