"""Many objects in one request: a hundred boxes against one, on a new image and on one that is remembered."""

import statistics

import numpy as np

from benchmarks.client import Exchange, Request, load, picture
from benchmarks.configuration import Configuration
from benchmarks.findings import Findings, Row, Table, budget_row
from benchmarks.servers import service
from benchmarks.spread import Spread, ratios
from benchmarks.workplace import Workplace

SIZE = (1920, 1080)
OBJECTS = 100
ROUNDS = 5


def run(workplace: Workplace) -> Findings:
    """Asks for one box and for a hundred in turns, one client."""
    seconds: dict[tuple[str, int], list[float]] = {}
    with service(workplace, Configuration()) as server:
        load(server.url, [box_request(1000, 1)], clients=1)
        for number in range(1 if workplace.quick else ROUNDS):
            for count in (1, OBJECTS):
                request = box_request(2 * number + (count > 1), count)
                done = load(server.url, [request, *[request.by_id()] * (3 if count == 1 else 1)], clients=1)
                if done.failures:
                    raise RuntimeError(f"{len(done.failures)} requests failed: {done.failures[0]}")
                new, *again = done.exchanges
                seconds.setdefault(("new", count), []).append(new.seconds)
                seconds.setdefault(("remembered", count), []).append(_median(again))
    many = {image: ratios(seconds[image, OBJECTS], seconds[image, 1]) for image in ("new", "remembered")}
    note = f"1080p, one mask for each box; {len(seconds['new', 1])} rounds"
    rows = [
        budget_row("objects", many["new"].median, workplace.precision, spread=many["new"], note=note),
        Row(
            f"a request with {OBJECTS} boxes ÷ one with one box, remembered image, RLE",
            many["remembered"].median,
            workplace.precision,
            unit="×",
            spread=many["remembered"],
            note=note,
        ),
    ]
    lines = [[image, str(count), str(Spread.of(values))] for (image, count), values in seconds.items()]
    table = Table("Seconds of a request", ("image", "boxes", "median (least – most)"), lines)
    return Findings(rows, [table], {f"{image}, {count} boxes": values for (image, count), values in seconds.items()})


def box_request(seed: int, count: int) -> Request:
    """Boxes anywhere in an image of its own."""
    corners = np.sort(np.random.default_rng(seed).random((count, 2, 2)) * SIZE, axis=1).reshape(count, 4)
    fields = {"box": str(corners.round(1).tolist()), "multimask_output": "false", "response_format": "rle"}
    return Request(picture(*SIZE, 77, seed), fields)


def _median(exchanges: list[Exchange]) -> float:
    return statistics.median(exchange.seconds for exchange in exchanges)
