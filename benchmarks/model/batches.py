"""What an image or a prompt costs in runs of several, and with memory that is kept from run to run.

Both decide defaults: `default_batch_sizes` in deployments/model/devices.py and KEEP_FREED_MEMORY in deployments/app.py.
malloc reads its settings when a process starts, so each measurement is a process of its own, by turns.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import orjson

from benchmarks.model import engines
from benchmarks.report import Findings, Row, Spread, ratios
from benchmarks.workplace import ROOT, Workplace
from deployments.app import KEEP_FREED_MEMORY
from deployments.messages.prompt import Prompt
from tuning.tables import Table

IMAGES, PROMPTS = (1, 2, 4), (1, 4, 16)
KEPT, RETURNED = "kept", "returned to the system"
MEMORY: dict[str, Mapping[str, str]] = {RETURNED: {}, KEPT: KEEP_FREED_MEMORY["env_vars"]}

Seconds: TypeAlias = dict[str, float]
"""By what is run: seconds for each image or prompt."""


def run(workplace: Workplace) -> Findings:
    """Measures hiera-tiny in both ways, in turns."""
    measured: dict[str, list[Seconds]] = {way: [] for way in MEMORY}
    for _ in range(1 if workplace.quick else 3):
        for way, environment in MEMORY.items():
            measured[way].append(_in_process_of_its_own(workplace.precision, environment))
    rows = [
        Row(
            f"memory that is kept, not returned: speed of {what}",
            spread.median,
            workplace.precision,
            unit="×",
            spread=spread,
        )
        for what in measured[KEPT][0]
        for spread in [ratios(*([one[what] for one in measured[way]] for way in (RETURNED, KEPT)))]
    ]
    lines = [
        [what, *(str(Spread.of([1000 * one[what] for one in measured[way]])) for way in MEMORY)]
        for what in measured[KEPT][0]
    ]
    columns = ("in one run", *(f"ms for each, memory {way}" for way in MEMORY))
    return Findings(rows, [Table("Runs of the model by their size, hiera-tiny", columns, lines)], dict(measured))


def _in_process_of_its_own(precision: str, environment: Mapping[str, str]) -> Seconds:
    command = [sys.executable, "-m", "benchmarks.model.batches", precision]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    seconds: Seconds = orjson.loads(done.stdout.splitlines()[-1])
    return seconds


def measure(precision: str) -> Seconds:
    """Seconds for each image and each prompt, in runs of every size."""
    engine = engines.engine(engines.hiera("tiny"), precision)
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(max(IMAGES))]
    seconds: Seconds = {}
    for count in IMAGES:
        batch = images[:count]
        took = engines.median_seconds(lambda batch=batch: engines.embed(engine, batch), 2)  # type: ignore[misc]
        seconds[f"{count} image{'s' * (count > 1)}"] = took / count
    [embedding] = engines.embed(engine, images[:1])
    for count in PROMPTS:
        engine.objects_at_once = count
        items: Any = [(embedding, Prompt(point_coords=[[x, 100]], point_labels=[1])) for x in range(count)]
        took = engines.median_seconds(lambda items=items: engine.decode(items), 5)  # type: ignore[misc]
        seconds[f"{count} prompt{'s' * (count > 1)}"] = took / count
    return seconds


if __name__ == "__main__":
    # In a thread that is not the first one, as in a replica: malloc treats the first one differently.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(measure, sys.argv[1]).result()
    sys.stdout.write(orjson.dumps(found).decode() + "\n")
