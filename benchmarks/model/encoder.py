"""The image encoder alone, against the floor that the machine's own matrix multiplication sets.

The floor is the encoder's arithmetic, counted by torch's FlopCounterMode, divided by the rate at which this machine,
in this run, multiplies large matrices. A processor without bfloat16 units multiplies float32 faster, often by far; the
floor is then the float32 one, the stricter of the two.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.model import engines
from benchmarks.report import Findings, Row, Spread, budget_row
from benchmarks.workplace import Workplace
from deployments.messages.arrays import RgbArray
from deployments.model.engine import Engine
from harness.images import noise, pixels
from tuning.tables import Table

LONGEST_MATMUL_S = 0.5
LARGEST_MATRIX = 8192


def run(workplace: Workplace) -> Findings:
    """Measures hiera-tiny on a CPU, hiera-large on a GPU."""
    on_gpu = torch.cuda.is_available()
    size, batch, repeats = ("large", 8, 10) if on_gpu else ("tiny", 1, 2 if workplace.quick else 5)
    rates = {name: matmul_rate(dtype) for name, dtype in engines.PRECISIONS.items()}
    precision = "bfloat16" if on_gpu else workplace.precision
    engine = engines.engine(engines.hiera(size), precision)
    images = [pixels(noise(1024, 1024, seed)) for seed in range(batch)]
    flops = count_flops(engine, images)
    seconds = Spread.of(engines.all_seconds(lambda: engines.embed(engine, images), repeats))
    floors = {name: flops / rate for name, rate in rates.items()}
    lines = [
        [name, f"{rates[name] / 1e9:,.1f}", f"{floor:.4g}", f"{seconds.median / floor:.3g}"]
        for name, floor in floors.items()
    ]
    note = f"hiera-{size}, {batch} × 1024×1024, {flops / 1e9:,.0f} GFLOP in {seconds} s"
    return Findings(
        [_row(seconds, floors, precision, note, on_gpu)],
        [Table(f"Image encoder, {precision}: {note}", ("matmul", "GFLOP/s", "floor, s", "encoder ÷ floor"), lines)],
        {"flops": flops, "seconds": seconds, "matmul_rates": rates, "size": size, "batch": batch},
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


def count_flops(engine: Engine, images: list[RgbArray]) -> int:
    """Floating point operations of one run of the encoder; a multiplication with its addition counts as two."""
    with FlopCounterMode(display=False) as counter:
        engines.embed(engine, images)
    return int(counter.get_total_flops())


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
