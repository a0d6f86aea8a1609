"""How throughput grows with model replicas, with a model that only waits 1 s: the serving path is measured, not SAM.

On a machine with few cores the real engine cannot show this: its replicas would share the cores. A replica that waits
stands for one with a GPU of its own; whatever is less than linear is lost by the proxy, the parser or the router. Every
request has a new image, whose replica is chosen by its digest, that is at random: so many clients that no replica is
without work for long.
"""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import httpx

from benchmarks.replicas.waiting_model import IMAGE_SIZE, WAIT_S
from benchmarks.report import Findings, Row, budget_row
from benchmarks.servers import Server, app_handle, deploy, local_service
from benchmarks.workplace import DEMO, Configuration, Workplace
from deployments.messages.prompt import Prompt
from harness.images import noise
from harness.load import TIMEOUT_S, point_request, send
from tuning.tables import Table

REPLICAS = (1, 2, 4, 8)
CLIENTS_PER_REPLICA = 16
SMALL = {"multimask_output": "false", "return_logits": "false"}
NO_ARITHMETIC = "none (waits)"

# As many parsers at one replica as at eight: they are not what is varied.
CONFIGURATION = Configuration(
    DEMO, import_path="benchmarks.replicas.waiting_model:build", parser={"num_replicas": 2, "max_ongoing_requests": 128}
)

Send = Callable[[], None]
seeds = itertools.count()


def run(workplace: Workplace) -> Findings:
    """Measures each number of replicas over HTTP and through the handle."""
    warm_up_s, seconds = (2.0, 5.0) if workplace.quick else (5.0, 25.0)
    rates: dict[str, dict[int, float]] = {"HTTP": {}, "handle": {}}
    with local_service(CONFIGURATION) as server:
        for replicas in REPLICAS[:2] if workplace.quick else REPLICAS:
            deploy(server, replace(CONFIGURATION, replicas=replicas))
            for path, connect in PATHS.items():
                rates[path][replicas] = steady_rate(
                    partial(connect, server), CLIENTS_PER_REPLICA * replicas, warm_up_s, seconds
                )
                print(f"  {path}, {replicas} replicas: {rates[path][replicas]:.2f} requests/s", flush=True)
    return Findings(_rows(rates), [_table(rates)], {"rates": rates, "wait_s": WAIT_S})


def steady_rate(connect: Callable[[], Send], clients: int, warm_up_s: float, seconds: float) -> float:
    """Answers per second of clients that send one request after the other, in a window after the warm-up.

    Raises:
        RuntimeError: a request failed.
    """
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds
    counts: list[int] = []
    lock = threading.Lock()

    def keep_sending() -> None:
        send_one, count = connect(), 0
        while time.perf_counter() < end:
            send_one()
            count += begin <= time.perf_counter() < end
        with lock:
            counts.append(count)

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(keep_sending) for _ in range(clients)]:
            future.result()
    return sum(counts) / seconds


def http(server: Server) -> Send:
    """Sends over HTTP, on a connection of its own; each request has an image of its own."""
    client = httpx.Client(base_url=server.url, timeout=TIMEOUT_S)

    def send_one() -> None:
        number = next(seeds)
        exchange = send(client, point_request(noise(*IMAGE_SIZE, number), IMAGE_SIZE, number, **SMALL))
        if not exchange.ok:
            raise RuntimeError(f"a request failed: {exchange}")

    return send_one


def handle(_: Server) -> Send:
    """Calls the application's handle."""
    application: Any = app_handle()
    prompt = Prompt(point_coords=[[32, 32]], point_labels=[1], multimask_output=False)
    return lambda: application.segment.remote(noise(*IMAGE_SIZE, next(seeds)), prompt).result(timeout_s=TIMEOUT_S)


PATHS: dict[str, Callable[[Server], Send]] = {"HTTP": http, "handle": handle}


def _rows(rates: dict[str, dict[int, float]]) -> list[Row]:
    rows = []
    for path, by_replicas in rates.items():
        most = max(by_replicas)
        efficiency = by_replicas[most] / (most * by_replicas[1])
        note = f"{path}, {most} replicas that wait {1000 * WAIT_S:.0f} ms, {CLIENTS_PER_REPLICA} clients for each"
        if path == "HTTP" and most == max(REPLICAS):
            rows.append(budget_row("scaling", efficiency, NO_ARITHMETIC, note=note))
        else:
            rows.append(Row(f"throughput, of linear growth, {path}", efficiency, NO_ARITHMETIC, note=note))
    return rows


def _table(rates: dict[str, dict[int, float]]) -> Table:
    lines = [
        [
            path,
            str(replicas),
            f"{rate:.2f}",
            f"{rate / (replicas * by_replicas[1]):.3f}",
            f"{rate * WAIT_S / replicas:.3f}",
        ]
        for path, by_replicas in rates.items()
        for replicas, rate in by_replicas.items()
    ]
    columns = ("path", "replicas", "requests/s", "of linear growth", "of what waiting alone allows")
    return Table(f"Model replicas that wait {1000 * WAIT_S:.0f} ms", columns, lines)
