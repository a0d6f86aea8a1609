"""The comparison with the naive server: same weights, same images, same client, in turns.

While one server is measured the other is idle. Each round measures both, and the ratio is taken round by round, so that
a machine that is slower for a while is slower for both.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.report import Findings, Row, Spread, budget_row, figure, ratios
from benchmarks.servers import Server, naive_server, service
from benchmarks.workplace import Configuration, Workplace
from harness.images import noise
from harness.load import Load, Request, load, point_request
from tuning.tables import Table

VGA, FULL_HD = (640, 480), (1920, 1080)

Answer = Literal["default JSON", "0/1 masks", "RLE by image_id", "RLE by image_id against 0/1 masks"]

BINARY, RLE = {"return_logits": "false"}, {"response_format": "rle"}
# What the naive server is asked for, which has no other format, and what the service is.
FIELDS: dict[Answer, tuple[dict[str, str], dict[str, str]]] = {
    "default JSON": ({}, {}),
    "0/1 masks": (BINARY, BINARY),
    "RLE by image_id": ({}, RLE),
    "RLE by image_id against 0/1 masks": (BINARY, RLE),
}
BY_ID: tuple[Answer, ...] = ("RLE by image_id", "RLE by image_id against 0/1 masks")


@dataclass(frozen=True)
class Scenario:
    """One way of asking.

    Attributes:
        size: width and height of the images.
        same_image: each request is a new prompt on one image; otherwise each has an image never seen before.
        answer: what is asked for.
        clients: how many ask at once.
        rounds: how often both servers are measured.
        naive_requests: requests to the naive server in a round.
        service_requests: requests to the service in a round; more, as it needs less time for each.
    """

    size: tuple[int, int]
    same_image: bool
    answer: Answer
    clients: int
    rounds: int
    naive_requests: int
    service_requests: int

    @property
    def name(self) -> str:
        """In words."""
        return (
            f"{self.size[0]}×{self.size[1]}, {'same' if self.same_image else 'new'} image, {self.answer}, "
            f"{self.clients} client{'s' * (self.clients > 1)}"
        )

    def requests(self, first_seed: int, count: int, to_service: bool) -> list[Request]:
        """The requests of one round; the same seed gives the same requests."""
        fields, by_id = FIELDS[self.answer][to_service], to_service and self.answer in BY_ID
        shared = self.image(0) if self.same_image else None
        requests = [
            point_request(shared or self.image(first_seed + index), self.size, first_seed + index, **fields)
            for index in range(count)
        ]
        return [request.by_id() for request in requests] if by_id else requests

    def first_request(self) -> Request:
        """What makes the service remember the image that all have in common."""
        return point_request(self.image(0), self.size, 0, return_logits="false")

    def image(self, seed: int) -> bytes:
        """An image that no other scenario uses."""
        return noise(*self.size, self.same_image, list(FIELDS).index(self.answer), self.clients, seed)


@dataclass
class Comparison:
    """What was measured in one scenario: the loads of each round."""

    scenario: Scenario
    naive: list[Load] = field(default_factory=list)
    served: list[Load] = field(default_factory=list)

    @property
    def ratio(self) -> Spread:
        """Throughput of the service ÷ that of the naive server."""
        return ratios([one.rate for one in self.served], [one.rate for one in self.naive])

    @property
    def num_failed(self) -> int:
        """Requests, of both servers, without an answer."""
        return sum(len(one.failures) for one in self.naive + self.served)


BOTH = (False, True)
# The naive server needs about 8 s for a 1080p request on two cores, so it gets few of them; its rate varies little.
FULL = [
    *(Scenario(FULL_HD, same, "default JSON", 4, 3, 4, 24 if same else 8) for same in BOTH),
    Scenario(FULL_HD, True, "RLE by image_id", 4, 3, 4, 150),
    Scenario(FULL_HD, True, "RLE by image_id against 0/1 masks", 4, 1, 4, 150),
    Scenario(FULL_HD, True, "0/1 masks", 4, 1, 4, 24),
    *(Scenario(size, same, "default JSON", 1, 3, 1, 4 if same else 2) for size in (FULL_HD, VGA) for same in BOTH),
    Scenario(FULL_HD, True, "RLE by image_id", 1, 3, 1, 40),
    *(Scenario(VGA, same, "default JSON", 4, 1, 4, 24 if same else 8) for same in BOTH),
    # One request after the other, the naive server answers as many a second whether six wait or sixteen.
    *(
        Scenario(size, same, "default JSON", 16, 1, 6, 64 if same else 16)
        for size, same in ((FULL_HD, True), (VGA, False), (FULL_HD, False))
    ),
]
QUICK = [
    Scenario(VGA, False, "default JSON", 1, 1, 1, 2),
    *(Scenario(FULL_HD, same, "default JSON", 4, 1, 2, 8) for same in BOTH),
    Scenario(FULL_HD, True, "RLE by image_id", 4, 1, 2, 40),
]

# Throughput is what many clients get together: four keep both servers busy all the time.
BUDGET_SCENARIOS: dict[str, "Key"] = {
    "new image": (FULL_HD, False, "default JSON", 4),
    "same image": (FULL_HD, True, "default JSON", 4),
    "same image small": (FULL_HD, True, "RLE by image_id", 4),
    "same image small, stretch": (FULL_HD, True, "RLE by image_id", 4),
}
Key = tuple[tuple[int, int], bool, Answer, int]


def run(workplace: Workplace) -> Findings:
    """Compares both servers in every scenario."""
    scenarios = QUICK if workplace.quick else FULL
    with naive_server(workplace) as naive, service(workplace, Configuration()) as served:
        for server in (naive, served):
            load(server.url, [point_request(noise(*VGA, 1), VGA, 0)], clients=1)
        comparisons = []
        for scenario in scenarios:
            comparisons.append(compare(scenario, naive, served))
            print(f"  {scenario.name}: {figure(comparisons[-1].ratio.median, '×')}", flush=True)
    return Findings(_rows(comparisons, workplace.precision), [_table(comparisons)], _data(comparisons))


def compare(scenario: Scenario, naive: Server, served: Server) -> Comparison:
    """Measures both servers in turns; who begins alternates."""
    comparison = Comparison(scenario)
    if scenario.same_image:
        # It has been seen before: that is what "same" means. The naive server remembers nothing that could be warm.
        load(served.url, [scenario.first_request()], clients=1)
    for number in range(scenario.rounds):
        first_seed = 1000 * (number + 1)
        turns = [
            (naive, scenario.naive_requests, comparison.naive),
            (served, scenario.service_requests, comparison.served),
        ]
        for server, count, loads in turns[:: -1 if number % 2 else 1]:
            requests = scenario.requests(first_seed, count, to_service=server is served)
            loads.append(load(server.url, requests, scenario.clients))
    return comparison


def _rows(comparisons: list[Comparison], precision: str) -> list[Row]:
    by_key = {_key(one.scenario): one for one in comparisons}
    precision = f"naive float32, service {precision}"
    rows = []
    for budget, key in BUDGET_SCENARIOS.items():
        if key in by_key:
            note = f"{key[3]} clients, {by_key[key].scenario.rounds} rounds"
            note += "; the naive server answers default JSON" if budget.startswith("same image small") else ""
            rows.append(_row(by_key[key], precision, note, budget))
    return rows + [_row(one, precision) for one in comparisons if _key(one.scenario) not in BUDGET_SCENARIOS.values()]


def _row(comparison: Comparison, precision: str, note: str = "", budget: str = "") -> Row:
    if comparison.num_failed:
        note += f"{'; ' * bool(note)}{comparison.num_failed} requests failed"
    spread = comparison.ratio
    if budget:
        return budget_row(budget, spread.median, precision, comparison.scenario.name, spread=spread, note=note)
    return Row(comparison.scenario.name, spread.median, precision, unit="×", spread=spread, note=note)


def _key(scenario: Scenario) -> Key:
    return scenario.size, scenario.same_image, scenario.answer, scenario.clients


def _table(comparisons: list[Comparison]) -> Table:
    columns = (
        "scenario",
        "naive, requests/s",
        "service, requests/s",
        "service ÷ naive",
        "naive, median s",
        "service, median s",
        "service, first byte s",
        "naive MB",
        "service MB",
    )
    return Table(
        "Service and naive server: median (least – most) of the rounds", columns, list(map(_line, comparisons))
    )


def _line(one: Comparison) -> list[str]:
    naive, served = ([exchange for load in loads for exchange in load.exchanges] for loads in (one.naive, one.served))
    return [
        one.scenario.name,
        str(Spread.of([load.rate for load in one.naive])),
        str(Spread.of([load.rate for load in one.served])),
        str(one.ratio),
        str(Spread.of([exchange.seconds for exchange in naive])),
        str(Spread.of([exchange.seconds for exchange in served])),
        str(Spread.of([exchange.first_byte_s for exchange in served])),
        f"{max(exchange.num_bytes for exchange in naive) / 1e6:.1f}",
        f"{max(exchange.num_bytes for exchange in served) / 1e6:.1f}",
    ]


def _data(comparisons: list[Comparison]) -> dict[str, Any]:
    return {
        one.scenario.name: {
            "scenario": asdict(one.scenario),
            "naive": [load.record() for load in one.naive],
            "service": [load.record() for load in one.served],
        }
        for one in comparisons
    }
