"""What Ray and HTTP add to a warm prompt: the latency of a small answer, less what the engine takes to decode."""

import statistics

from benchmarks import engines
from benchmarks.client import Exchange, load, picture, pixels, point_request
from benchmarks.configuration import Configuration
from benchmarks.findings import Findings, Table, budget_row
from benchmarks.servers import Server, service
from benchmarks.spread import Spread, percentile
from benchmarks.workplace import Workplace
from deployments.messages.prompt import Prompt

SIZE = (256, 256)
SMALL = {"multimask_output": "false", "response_format": "rle"}


def run(workplace: Workplace) -> Findings:
    """Asks one client's warm prompts; times the same work in this process while the service is idle."""
    count = 20 if workplace.quick else 150
    image = picture(*SIZE, 7)
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
