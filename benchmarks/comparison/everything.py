"""Segment everything: against SAM 2's own generator on the same weights, and what a click meanwhile has to wait."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

from benchmarks.report import Findings, Spread, budget_row, ratios
from benchmarks.servers import service
from benchmarks.workplace import DEMO, ROOT, Configuration, Workplace
from deployments.model.checkpoints import load_model
from deployments.settings import ModelSettings
from harness.images import encoded, pixels
from harness.load import Request, continuous_load, load, point_request
from tuning.tables import Table

AUTO = "/segment-anything-2/auto"
SIZES = ((640, 480), (1920, 1080))
# The bundled model is less sure of itself than Meta's are: with their thresholds nothing would be left.
THRESHOLDS = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.8}
CLICK = {"multimask_output": "false", "response_format": "rle"}


def run(workplace: Workplace) -> Findings:
    """Measures both in turns, then clicks alone and beside a long request."""
    side, rounds = (4, 1) if workplace.quick else (16, 3)
    options = {"points_per_side": side, **THRESHOLDS}
    # Loaded by itself: the service's engine takes parts off the one that it is given.
    generator = SAM2AutomaticMaskGenerator(load_model(ModelSettings(model_id=DEMO), lambda *_: None).eval(), **options)
    rows, lines, data = [], [], {}
    with service(workplace, Configuration(DEMO, model={"precision": "float32"})) as server:
        load(server.url, [everything(example((64, 48), 0), {"points_per_side": 1})], clients=1)
        for size in SIZES[:1] if workplace.quick else SIZES:
            meta_s, served_s = [], []
            for number in range(rounds):
                image = example(size, number)
                meta_s.append(meta_seconds(generator, pixels(image)))
                served_s.append(_seconds(server.url, everything(image, options)))
            speedup = ratios(meta_s, served_s)
            data[f"{size[0]}×{size[1]}"] = {"meta_s": meta_s, "service_s": served_s}
            lines.append([f"{size[0]}×{size[1]}", str(Spread.of(meta_s)), str(Spread.of(served_s)), str(speedup)])
        note = f"{size[0]}×{size[1]}, {side}×{side} points, bundled model, new image, {rounds} rounds"
        rows.append(budget_row("everything", speedup.median, "float32", spread=speedup, note=note))
        idle, busy = clicks(server.url, 5 if workplace.quick else 40, side if workplace.quick else 32)
    data["clicks"] = {"idle_s": idle, "busy_s": busy}
    slower = statistics.median(busy) / statistics.median(idle)
    note = f"medians of {len(idle)} and {len(busy)} clicks by image_id, 1080p, one mask as RLE; most {max(busy):.2f} s"
    rows.append(budget_row("click", slower, "float32", note=note))
    lines_of_clicks = [["alone", str(Spread.of(idle))], ["beside a request for everything", str(Spread.of(busy))]]
    columns = ("image", "SAM2AutomaticMaskGenerator, s", "service, s", "times as fast")
    tables = [
        Table("Everything in an image", columns, lines),
        Table("Seconds of a click", ("when", "median (least – most)"), lines_of_clicks),
    ]
    return Findings(rows, tables, data)


def clicks(url: str, count: int, points_per_side: int) -> tuple[list[float], list[float]]:
    """Seconds of clicks on a remembered image: alone, and while everything in another image is segmented."""
    image = example(SIZES[-1], 100)
    prompts = [point_request(image, SIZES[-1], index, **CLICK) for index in range(count)]
    load(url, prompts[:1], clients=1)
    by_id = [prompt.by_id() for prompt in prompts]
    idle = load(url, by_id, clients=1)
    options = {"points_per_side": points_per_side, **THRESHOLDS}
    with continuous_load(url, [everything(example(SIZES[-1], 101), options)], clients=1) as finish:
        # Until it has been uploaded and embedded, and the grid's points are at work.
        time.sleep(5)
        busy = load(url, by_id, clients=1)
        long_request = finish()
    for done in (idle, busy, long_request):
        if done.failures:
            raise RuntimeError(f"{len(done.failures)} requests failed: {done.failures[0]}")
    if long_request.seconds < busy.seconds:
        raise RuntimeError("everything was segmented before the last click")
    return [one.seconds for one in idle.exchanges], [one.seconds for one in busy.exchanges]


def everything(image: bytes, options: Mapping[str, Any]) -> Request:
    """A request for everything, as RLE."""
    return Request(image, {name: str(value) for name, value in options.items()}, AUTO)


def meta_seconds(generator: SAM2AutomaticMaskGenerator, image: NDArray[np.uint8]) -> float:
    """One run of SAM 2's generator, in this process, without HTTP."""
    started = time.perf_counter()
    with torch.inference_mode():
        generator.generate(image)
    return time.perf_counter() - started


def example(size: tuple[int, int], seed: int) -> bytes:
    """The bundled example at a size, one pixel changed: a new image."""
    image = np.array(Image.open(ROOT / "deployments" / "model" / "demo" / "example.png").convert("RGB").resize(size))
    image[0, 0] = seed
    return encoded(Image.fromarray(image), compress_level=1)


def _seconds(url: str, request: Request) -> float:
    done = load(url, [request], clients=1)
    if done.failures:
        raise RuntimeError(f"a request failed: {done.failures[0]}")
    return done.exchanges[0].seconds
