"""How many requests a model replica should have at once: rate, time and batch size by the number of clients.

Decides `target_ongoing_requests` and `max_batch_size` in serve_config.yaml. Every request has an image of its own. On a
CPU a batch is no faster than its images one by one; how many images wait together while the last batch runs depends on
the clients alone, and is the same with a GPU.
"""

import itertools
import time
from statistics import median
from typing import Any

import ray

from benchmarks.report import Findings
from benchmarks.servers import local_service
from benchmarks.workplace import DEMO, Configuration, Workplace
from harness.exported import scrape
from harness.images import noise
from harness.load import continuous_load, point_request
from tuning.tables import Table

CLIENTS = (1, 2, 4, 6, 8, 12, 16, 32)
MAX_BATCH_SIZE = 8
IMAGE_SIZE = (320, 240)
EXPORT_S = 12.0
"""Ray exports metrics every ten seconds."""

CONFIGURATION = Configuration(
    DEMO, model_deployment={"user_config": {"max_batch_size": MAX_BATCH_SIZE, "batch_wait_timeout_s": 0.01}}
)

seeds = itertools.count()


def run(workplace: Workplace) -> Findings:
    """Measures each number of clients."""
    data, lines = {}, []
    with local_service(CONFIGURATION) as server:
        _times(server.url, 2, 3.0)
        time.sleep(EXPORT_S)
        for clients in CLIENTS[:3] if workplace.quick else CLIENTS:
            runs, images = _embedded()
            seconds = sorted(_times(server.url, clients, 5.0 if workplace.quick else 15.0))
            time.sleep(EXPORT_S)
            more_runs, more_images = _embedded()
            batch = (more_images - images) / (more_runs - runs)
            rate = len(seconds) / sum(seconds) * clients
            slow = seconds[int(0.95 * (len(seconds) - 1))]
            data[clients] = {"rate": rate, "median_s": median(seconds), "p95_s": slow, "batch": batch}
            lines.append([str(clients), f"{rate:.2f}", f"{median(seconds):.2f}", f"{slow:.2f}", f"{batch:.1f}"])
            print(f"  {clients} clients: {lines[-1][1:]}", flush=True)
    columns = ("clients", "requests/s", "median s", "95 % within s", "images in a batch")
    title = f"One replica, max_batch_size {MAX_BATCH_SIZE}, new images only"
    return Findings([], [Table(title, columns, lines)], {"by_clients": data, "max_batch_size": MAX_BATCH_SIZE})


def _times(url: str, clients: int, seconds: float) -> list[float]:
    """How long each request took, of clients that send one after the other."""
    new = (point_request(noise(*IMAGE_SIZE, seed), IMAGE_SIZE, seed, return_logits="false") for seed in seeds)
    with continuous_load(url, new, clients) as finish:
        time.sleep(seconds)
        done = finish()
    if done.failures:
        raise RuntimeError(f"{len(done.failures)} requests failed: {done.failures[0]}")
    return [exchange.seconds for exchange in done.exchanges]


def _embedded() -> tuple[float, float]:
    """Runs of the image encoder so far, and images in them."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    exported = scrape(f"http://127.0.0.1:{nodes[0]['MetricsExportPort']}/metrics")
    runs, images = (exported.total(f"ray_sam2_batch_size_{what}", stage="embed") for what in ("count", "sum"))
    return runs, images
