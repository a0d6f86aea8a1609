"""How many requests a model replica should have at once: rate, time and batch size by the number of clients.

Decides `target_ongoing_requests` and `max_batch_size` in serve_config.yaml. Every request has an image of its own. On a
CPU a batch is no faster than its images one by one; how many images wait together while the last batch runs depends on
the clients alone, and is the same with a GPU.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.client import TIMEOUT_S, picture, point_request, send
from benchmarks.cluster import local_service
from benchmarks.configuration import Configuration
from benchmarks.findings import Findings, Table
from benchmarks.workplace import DEMO, Workplace

CLIENTS = (1, 2, 4, 6, 8, 12, 16, 32)
MAX_BATCH_SIZE = 8
IMAGE_SIZE = (320, 240)
EXPORT_S = 12.0
"""Ray exports metrics every ten seconds."""

CONFIGURATION = Configuration(
    DEMO, model_deployment={"user_config": {"max_batch_size": MAX_BATCH_SIZE, "batch_wait_timeout_s": 0.01}}
)


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
    end = time.perf_counter() + seconds
    times: list[float] = []
    lock = threading.Lock()

    def keep_sending(number: int) -> None:
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            while time.perf_counter() < end:
                with lock:
                    seed = len(times) + 1_000_000 * number + time.time_ns() % 1_000_000
                request = point_request(picture(*IMAGE_SIZE, seed), IMAGE_SIZE, seed, return_logits="false")
                started = time.perf_counter()
                exchange = send(client, request)
                if not exchange.ok:
                    raise RuntimeError(f"a request failed: {exchange}")
                with lock:
                    times.append(time.perf_counter() - started)

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(keep_sending, number) for number in range(clients)]:
            future.result()
    return times


def _embedded() -> tuple[float, float]:
    """Runs of the image encoder so far, and images in them."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    text = httpx.get(f"http://127.0.0.1:{nodes[0]['MetricsExportPort']}/metrics", timeout=10).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    runs, images = (
        sum(sample.value for sample in samples if sample.name == name and sample.labels.get("stage") == "embed")
        for name in ("ray_sam2_batch_size_count", "ray_sam2_batch_size_sum")
    )
    return runs, images
