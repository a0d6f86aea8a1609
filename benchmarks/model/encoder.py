"""The image encoder alone: against the floor that the machine's own matrix multiplication sets, and its backends.

The floor is the arithmetic of SAM 2's own `forward_image`, counted by torch's FlopCounterMode, divided by the rate at
which this machine, in this run, multiplies large matrices. A processor without bfloat16 units multiplies float32
faster, often by far; the floor is then the float32 one, the stricter of the two.

On a processor three encoders take turns: `forward_image`, the engine's on torch, and OpenVINO's, where it is installed.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.model import engines
from benchmarks.report import Findings, Row, Spread, budget_row, ratios
from benchmarks.workplace import Workplace
from deployments.messages.arrays import RgbArray
from deployments.model import openvino_encoder
from deployments.model.engine import Engine
from deployments.model.openvino_encoder import OpenVinoEncoder
from harness.images import noise, pixels
from tuning.measuring import embed
from tuning.tables import Table

OWN, TORCH, OPENVINO = "SAM 2's forward_image", "the engine's on torch", "OpenVINO's"

LONGEST_MATMUL_S = 0.5
LARGEST_MATRIX = 8192


def run(workplace: Workplace) -> Findings:
    """Measures hiera-tiny on a CPU, where backends take turns, and hiera-large on a GPU."""
    on_gpu = torch.cuda.is_available()
    size, batch, repeats = ("large", 8, 10) if on_gpu else ("tiny", 1, 2 if workplace.quick else 5)
    rates = {name: matmul_rate(dtype) for name, dtype in engines.PRECISIONS.items()}
    precision = "bfloat16" if on_gpu else workplace.precision
    engine = engines.engine(engines.hiera(size), precision)
    images = [pixels(noise(1024, 1024, seed)) for seed in range(batch)]
    flops = count_flops(engines.hiera(size).to(engine.device), batch)
    runs: dict[str, list[float]] = {}
    if on_gpu:
        runs[TORCH] = engines.all_seconds(lambda: embed(engine, images), repeats)
    else:
        with tempfile.TemporaryDirectory(dir=workplace.folder) as folder:
            runs = in_turns(backends(engine, size, images, Path(folder)), repeats)
    seconds = Spread.of(runs[TORCH])
    floors = {name: flops / rate for name, rate in rates.items()}
    lines = [
        [name, f"{rates[name] / 1e9:,.1f}", f"{floor:.4g}", f"{seconds.median / floor:.3g}"]
        for name, floor in floors.items()
    ]
    note = f"hiera-{size}, {batch} × 1024×1024, {flops / 1e9:,.0f} GFLOP in {seconds} s"
    compared = [
        Row(f"image encoder: {name} ÷ {TORCH}", spread.median, precision, unit="×", spread=spread)
        for name, one in runs.items()
        if name != TORCH
        for spread in [ratios(one, runs[TORCH])]
    ]
    return Findings(
        [_row(seconds, floors, precision, note, on_gpu), *compared],
        [Table(f"Image encoder, {precision}: {note}", ("matmul", "GFLOP/s", "floor, s", "encoder ÷ floor"), lines)],
        {"flops": flops, "seconds": seconds, "runs": runs, "matmul_rates": rates, "size": size, "batch": batch},
    )


def _row(seconds: Spread, floors: dict[str, float], precision: str, note: str, on_gpu: bool) -> Row:
    times = (seconds.median, seconds.low, seconds.high)
    if on_gpu:
        median, high, low = (100 * floors["bfloat16"] / value for value in times)
        spread = Spread(median, low, high, seconds.count)
        return budget_row("encoder gpu", median, precision, spread=spread, note=note)
    kind = min(floors, key=lambda name: floors[name])
    median, low, high = (value / floors[kind] for value in times)
    note += f"; against {kind}, the faster here; ÷ the bfloat16 floor {seconds.median / floors['bfloat16']:.3g}"
    spread = Spread(median, low, high, seconds.count)
    return budget_row("encoder cpu", median, precision, spread=spread, note=note)


def count_flops(model: SAM2Base, batch: int) -> int:
    """Floating point operations of `forward_image`; a multiplication with its addition counts as two.

    Not of the engine's encoder: the counter does not know oneDNN's fused layers.
    """
    device = next(model.parameters()).device
    pixels = torch.zeros(batch, 3, model.image_size, model.image_size, device=device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.forward_image(pixels)
    return int(counter.get_total_flops())


def backends(engine: Engine, size: str, images: list[RgbArray], folder: Path) -> dict[str, Callable[[], object]]:
    """What takes turns, each from the model's input to feature maps."""
    own = Engine(engines.hiera(size), engine.device, engine.precision)
    own.use_encoder(own._image_features, OWN)
    found = {OWN: own, TORCH: engine}
    if openvino_encoder.is_installed():
        openvino_encoder.convert_model(engines.hiera(size), folder)
        converted = Engine(engines.hiera(size), engine.device, engine.precision)
        encode = OpenVinoEncoder(folder / "encoder.xml", engine.precision, torch.get_num_threads())
        converted.use_encoder(encode, OPENVINO)
        found[OPENVINO] = converted
    return {name: partial(embed, one, images) for name, one in found.items()}


def in_turns(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """How long each way takes, by turns, after a run of each that warms up."""
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            runs[name].append(time.perf_counter() - started)
    return runs


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product; the size grows until one takes long enough to be measured."""
    size = 256
    while True:
        rate = _rate(size, dtype)
        if size >= LARGEST_MATRIX or 2 * (2 * size) ** 3 / rate > LONGEST_MATMUL_S:
            return rate
        size *= 2


def _rate(size: int, dtype: torch.dtype, repeats: int = 5) -> float:
    """The best of some repeats: a floor is what the machine can do at all."""
    one, other = (torch.randn(size, size).to(engines.device(), dtype) for _ in range(2))

    def multiply() -> None:
        torch.matmul(one, other)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return 2 * size**3 / min(engines.all_seconds(multiply, repeats))
