"""Latencies: what Ray and HTTP add to a warm prompt, less what the engine takes; many objects in one request."""

import statistics

import numpy as np

from benchmarks.model import engines
from benchmarks.report import Findings, Row, Spread, budget_row, ratios
from benchmarks.servers import Server, service
from benchmarks.workplace import Configuration, Workplace
from deployments.messages.prompt import Prompt
from harness.images import noise, pixels
from harness.load import Exchange, Request, load, percentile, point_request
from tuning.tables import Table

SIZE, FULL_HD = (256, 256), (1920, 1080)
OBJECTS = 100
ROUNDS = 5
SMALL = {"multimask_output": "false", "response_format": "rle"}


def run(workplace: Workplace) -> Findings:
    """Asks one client's warm prompts; times the same work in this process while the service is idle."""
    count = 20 if workplace.quick else 150
    image = noise(*SIZE, 7)
    with service(workplace, Configuration()) as server:
        exchanges = ask(server, image, count)
        in_process = engine_seconds(image, workplace.precision, 3 if workplace.quick else 20)
    decode_ms, source = _decode_ms(exchanges, in_process)
    latencies = [1000 * exchange.seconds for exchange in exchanges]
    added = [latency - ms for latency, ms in zip(latencies, decode_ms, strict=True)]
    note = f"256×256, one mask, by image_id; median latency {statistics.median(latencies):.1f} ms less {source}"
    row = budget_row("overhead", statistics.median(added), workplace.precision, spread=Spread.of(added), note=note)
    return Findings(
        [row],
        [_stages(exchanges, in_process)],
        {"latencies_ms": latencies, "added_ms": added, "in_process_s": in_process},
    )


def ask(server: Server, image: bytes, count: int) -> list[Exchange]:
    """Prompts on one image that the service has seen, one after the other."""
    first, *others = (point_request(image, SIZE, index, **SMALL) for index in range(count + 3))
    done = load(server.url, [first, *(request.by_id() for request in others)], clients=1)
    if done.failures:
        raise RuntimeError(f"{len(done.failures)} requests failed: {done.failures[0]}")
    # The first ones embed the image, open the connection and fill caches.
    return done.exchanges[3:]


def engine_seconds(image: bytes, precision: str, repeats: int) -> dict[str, float]:
    """Median seconds of the engine's two steps on that image, without Ray."""
    engine = engines.engine(engines.hiera("tiny"), precision)
    array = pixels(image)
    [embedding] = engines.embed(engine, [array])
    prompt = Prompt(point_coords=[[100, 100]], point_labels=[1], multimask_output=False)
    return {
        "embed": engines.median_seconds(lambda: engines.embed(engine, [array]), max(2, repeats // 5)),
        "decode": engines.median_seconds(lambda: engines.decode(engine, embedding, prompt), repeats),
    }


def _decode_ms(exchanges: list[Exchange], in_process: dict[str, float]) -> tuple[list[float], str]:
    """What to take off each request, and where that is known from."""
    if all("decode" in exchange.durations for exchange in exchanges):
        return [exchange.durations["decode"] for exchange in exchanges], "its decode by Server-Timing"
    known = 1000 * (in_process["embed"] + in_process["decode"])
    return [known] * len(exchanges), "embed and decode timed in-process: the service sends no Server-Timing"


def _stages(exchanges: list[Exchange], in_process: dict[str, float]) -> Table:
    latencies = [1000 * exchange.seconds for exchange in exchanges]
    lines = [["latency at the client", *_figures(latencies)]]
    lines += [
        [f"Server-Timing {name}", *_figures([one.durations.get(name, 0.0) for one in exchanges])]
        for name in exchanges[0].durations
    ]
    lines += [[f"{name} in-process", f"{1000 * seconds:.2f}", "", ""] for name, seconds in in_process.items()]
    return Table("A warm prompt, one client, ms", ("stage", "median", "95th percentile", "most"), lines)


def _figures(values: list[float]) -> list[str]:
    return [f"{value:.2f}" for value in (statistics.median(values), percentile(values, 0.95), max(values))]


# ---- a hundred boxes against one, on a new image and on one that is remembered


def run_objects(workplace: Workplace) -> Findings:
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
    corners = np.sort(np.random.default_rng(seed).random((count, 2, 2)) * FULL_HD, axis=1).reshape(count, 4)
    fields = {"box": str(corners.round(1).tolist()), "multimask_output": "false", "response_format": "rle"}
    return Request(noise(*FULL_HD, 77, seed), fields)


def _median(exchanges: list[Exchange]) -> float:
    return statistics.median(exchange.seconds for exchange in exchanges)
