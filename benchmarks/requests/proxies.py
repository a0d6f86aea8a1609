"""Serve's own proxy and HAProxy in front of the parsers (RAY_SERVE_ENABLE_HA_PROXY=1): which one is faster."""

from benchmarks.report import Findings, Row, Spread, ratios
from benchmarks.servers import HA_PROXY, SERVE_PROXY, Server, service
from benchmarks.workplace import DEMO, Configuration, Workplace
from harness.images import noise
from harness.load import Load, load, point_request
from tuning.tables import Table

FULL_HD, SMALL = (1920, 1080), (256, 256)
LITTLE = {"multimask_output": "false", "return_logits": "false"}

# name → size, fields, clients, requests in a round
LOADS: dict[str, tuple[tuple[int, int], dict[str, str], int, int]] = {
    "1080p, same image, default JSON, 1 client": (FULL_HD, {}, 1, 6),
    "1080p, same image, default JSON, 4 clients": (FULL_HD, {}, 4, 12),
    "1080p, same image, 0/1 masks, 4 clients": (FULL_HD, {"return_logits": "false"}, 4, 24),
    "256×256, same image, one 0/1 mask, 1 client": (SMALL, LITTLE, 1, 40),
    "256×256, same image, one 0/1 mask, 16 clients": (SMALL, LITTLE, 16, 160),
}


def run(workplace: Workplace) -> Findings:
    """Runs both services at once, each on its own Ray, with the light bundled model, and measures them in turns."""
    configuration = Configuration(DEMO)
    with (
        service(workplace, configuration, SERVE_PROXY) as plain,
        service(workplace, configuration, HA_PROXY) as direct,
    ):
        loads = {name: compare(name, plain, direct, workplace.quick) for name in LOADS}
    rows = [_row(name, *pair, workplace.precision) for name, pair in loads.items()]
    lines = [[name, *(str(Spread.of([one.rate for one in side])) for side in pair)] for name, pair in loads.items()]
    data = {name: [[one.record() for one in side] for side in pair] for name, pair in loads.items()}
    table = Table("Serve's proxy and HAProxy, requests/s", ("load", "Serve's proxy", "HAProxy"), lines)
    return Findings(rows, [table], data)


def compare(name: str, plain: Server, direct: Server, quick: bool) -> tuple[list[Load], list[Load]]:
    """The loads of each round at both servers."""
    size, fields, clients, count = LOADS[name]
    count = max(clients, count // 6) if quick else count
    image = noise(*size, 11)
    measured: tuple[list[Load], list[Load]] = [], []
    for server in (plain, direct):
        load(server.url, [point_request(image, size, index, **fields) for index in range(clients)], clients)
    for number in range(1 if quick else 4):
        requests = [point_request(image, size, index + 1000 * number, **fields) for index in range(count)]
        turns = list(zip((plain, direct), measured, strict=True))
        for server, loads in turns[:: -1 if number % 2 else 1]:
            loads.append(load(server.url, requests, clients))
    return measured


def _row(name: str, plain: list[Load], direct: list[Load], precision: str) -> Row:
    failed = sum(len(one.failures) for one in plain + direct)
    spread = ratios([one.rate for one in direct], [one.rate for one in plain])
    note = f"{failed} requests failed" if failed else ""
    return Row(f"HAProxy ÷ Serve's proxy: {name}", spread.median, precision, unit="×", spread=spread, note=note)
