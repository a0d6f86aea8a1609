"""`make bench`: measures the service against the naive server and against its budgets; prints tables and keeps them.

Everything is a ratio within this one run, or a budget that does not depend on the machine's speed. The JSON file and a
plot go to benchmarks/results/. Leave the machine alone meanwhile: nothing else should run on it.
"""

import argparse
import importlib
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from benchmarks.plot import draw
from benchmarks.report import Report
from benchmarks.workplace import Workplace
from deployments.environment import prepare_environment
from deployments.model.devices import choose_precision
from tuning.hardware import describe, slug

RESULTS = Path(__file__).parent / "results"

PARTS = {
    "encoder": ("model.encoder", "run"),
    "decoder": ("model.decoder", "run"),
    "batches": ("model.batches", "run"),
    "tracking": ("model.tracking", "run"),
    "parity": ("comparison.parity", "run"),
    "overhead": ("requests.latency", "run"),
    "page": ("requests.page", "run"),
    "scenarios": ("comparison.scenarios", "run"),
    "objects": ("requests.latency", "run_objects"),
    "everything": ("comparison.everything", "run"),
    "affinity": ("replicas.affinity", "run"),
    "faults": ("replicas.faults", "run"),
    "scaling": ("replicas.scaling", "run"),
    "memory": ("requests.memory", "run"),
    "video": ("requests.video", "run"),
    "videos": ("replicas.videos", "run"),
    "ongoing": ("replicas.ongoing", "run"),
}
"""By name: a module and a function of it. They run in this order, the quick and the most important ones first."""

BUSY = 0.5
"""A load average at the start from which on the figures are doubtful."""


def main(argv: list[str] | None = None) -> int:
    """Runs the parts; returns how many failed."""
    options = _options(argv)
    hardware = describe()
    if hardware["load_average_at_start"] > BUSY:
        print(f"warning: load average {hardware['load_average_at_start']:.1f}; figures will be doubtful", flush=True)
    # As Ctrl-C does: the servers that were started are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Before a part imports Ray: this process joins services' clusters, and must see them as their launcher does.
    prepare_environment()
    report = Report(hardware, _precision(), options.quick)
    stem = options.output / "-".join([slug(hardware), *options.only, *["quick"] * options.quick])
    with tempfile.TemporaryDirectory(prefix="sam2-bench-") as folder:
        workplace = Workplace(Path(folder), options.quick, report.precision)
        workplace.fill()
        for part in options.only or PARTS:
            _run_part(part, workplace, report)
            # After each part: what has been measured is not lost if the next one takes the machine down.
            report.write(stem.with_name(f"{stem.name}.json"))
    draw(report, stem.with_name(f"{stem.name}.png"))
    print(f"\n{report.markdown()}\n\nwritten: {stem}.json, {stem}.png", flush=True)
    return len(report.failures)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes, to see that all works; no real figures")
    parser.add_argument("--only", type=_parts, default=[], metavar="PART[,PART]", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file and the plot")
    return parser.parse_args(argv)


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return parts


def _precision() -> str:
    """What the service's default, `auto`, means on this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return str(choose_precision("auto", device)).removeprefix("torch.")


def _run_part(part: str, workplace: Workplace, report: Report) -> None:
    print(f"== {part}", flush=True)
    started = time.monotonic()
    try:
        # Imported here: a part whose imports fail takes none of the others with it.
        module, function = PARTS[part]
        report.findings[part] = getattr(importlib.import_module(f"benchmarks.{module}"), function)(workplace)
    # Whatever it is, the other parts are still worth running.
    except Exception as error:
        traceback.print_exc()
        report.failures[part] = f"{type(error).__name__}: {error}"
    print(f"== {part}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
