"""Whether follow-up prompts reach the replica that remembers the image: at one replica, at four, and after a fifth."""

import random
from collections import Counter
from dataclasses import replace

from benchmarks.report import Findings, Row, budget_row
from benchmarks.servers import Server, deploy, local_service
from benchmarks.workplace import DEMO, Configuration, Workplace
from harness.images import noise
from harness.load import Exchange, Request, load, point_request
from tuning.tables import Table

SIZE = (96, 64)
SMALL = {"multimask_output": "false", "return_logits": "false"}
CLIENTS = 4
AT_ONCE = 10
HIT = "hit"

# One torch thread for each: four replicas share the machine.
CONFIGURATION = Configuration(DEMO, model={"torch_threads": 1})


def run(workplace: Workplace) -> Findings:
    """Deploys one replica, then four, then five, on one running service."""
    num_images, follow_ups = (8, 2) if workplace.quick else (60, 5)
    shares: dict[str, float | None] = {}
    caches: dict[str, dict[str, int]] = {}

    def note(name: str, exchanges: list[Exchange]) -> None:
        caches[name] = dict(Counter(exchange.cache or "not told" for exchange in exchanges))
        shares[name] = hit_share(exchanges)

    with local_service(CONFIGURATION) as server:
        at_once = same_image_at_once(server)
        for replicas in (1, 4):
            deploy(server, replace(CONFIGURATION, replicas=replicas))
            # New images for each: what moved when replicas came is measured below.
            images = [noise(*SIZE, replicas, seed) for seed in range(num_images)]
            ask(server, images, 1)
            note(f"{replicas} replicas", ask(server, images, follow_ups))
        deploy(server, replace(CONFIGURATION, replicas=5))
        note("first prompts after a fifth replica came", ask(server, images, 1))
        note("after that", ask(server, images, follow_ups))
    rows = _rows(shares, num_images, workplace.precision)
    rows.append(_single_flight(at_once, workplace.precision))
    lines = [[name, "–" if share is None else f"{share:.1f} %", str(caches[name])] for name, share in shares.items()]
    table = Table("Cache hits by Server-Timing", ("replicas", "hits", "what the service said"), lines)
    return Findings(rows, [table], {"hit_percent": shares, "caches": caches})


def ask(server: Server, images: list[bytes], prompts: int) -> list[Exchange]:
    """So many prompts on each image, in random order."""
    requests: list[Request] = [
        point_request(image, SIZE, index, **SMALL) for index in range(prompts) for image in images
    ]
    random.Random(prompts).shuffle(requests)
    done = load(server.url, requests, CLIENTS)
    if done.failures:
        raise RuntimeError(f"{len(done.failures)} requests failed: {done.failures[0]}")
    return done.exchanges


def hit_share(exchanges: list[Exchange]) -> float | None:
    """Percent of the requests that the cache served; None if the service does not tell."""
    if not all(exchange.cache for exchange in exchanges):
        return None
    return 100 * sum(exchange.cache == HIT for exchange in exchanges) / len(exchanges)


def same_image_at_once(server: Server) -> list[Exchange]:
    """Ten clients ask for one new image at the same moment."""
    image = noise(*SIZE, 99)
    return load(server.url, [point_request(image, SIZE, index, **SMALL) for index in range(AT_ONCE)], AT_ONCE).exchanges


def _rows(shares: dict[str, float | None], num_images: int, precision: str) -> list[Row]:
    one, four, first, after = shares.values()
    moved = None if first is None else 100 - first
    unknown = "the service's Server-Timing tells nothing of its cache"
    note = unknown if four is None or one is None else f"{num_images} images; with one replica {one:.1f} %"
    return [
        budget_row("affinity", four, precision, note=note),
        budget_row("moved", moved, precision, note=unknown if moved is None else "a fifth, 20 %, is expected"),
        budget_row("affinity after", after, precision, note=unknown if after is None else ""),
    ]


def _single_flight(exchanges: list[Exchange], precision: str) -> Row:
    told = all(exchange.ok and exchange.cache for exchange in exchanges)
    misses = float(sum(exchange.cache == "miss" for exchange in exchanges))
    note = (
        "requests whose Server-Timing says miss" if told else "the service's Server-Timing tells nothing of its cache"
    )
    return budget_row("single flight", misses if told else None, precision, note=note)
