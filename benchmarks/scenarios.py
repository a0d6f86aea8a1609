"""The comparison with the naive server: same weights, same images, same client, in turns.

While one server is measured the other is idle. Each round measures both, and the ratio is taken round by round, so that
a machine that is slower for a while is slower for both.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.budgets import figure
from benchmarks.client import Load, Request, load, picture, point_request
from benchmarks.configuration import Configuration
from benchmarks.findings import Findings, Row, Table, budget_row
from benchmarks.servers import Server, naive_server, service
from benchmarks.spread import Spread, ratios
from benchmarks.workplace import Workplace

VGA, FULL_HD = (640, 480), (1920, 1080)


@dataclass(frozen=True)
class Scenario:
    """One way of asking.

    Attributes:
        size: width and height of the images.
        same_image: each request is a new prompt on one image; otherwise each has an image never seen before.
        return_logits: the default answer, or 0/1 masks.
        clients: how many ask at once.
        rounds: how often both servers are measured.
        naive_requests: requests to the naive server in a round.
        service_requests: requests to the service in a round; more, as it needs less time for each.
    """

    size: tuple[int, int]
    same_image: bool
    return_logits: bool
    clients: int
    rounds: int
    naive_requests: int
    service_requests: int

    @property
    def name(self) -> str:
        """In words."""
        return (
            f"{self.size[0]}×{self.size[1]}, {'same' if self.same_image else 'new'} image, "
            f"{'default JSON' if self.return_logits else '0/1 masks'}, {self.clients} client{'s' * (self.clients > 1)}"
        )

    def requests(self, first_seed: int, count: int) -> list[Request]:
        """The requests of one round; the same seed gives the same requests."""
        fields = {} if self.return_logits else {"return_logits": "false"}
        shared = self.image(0) if self.same_image else None
        return [
            point_request(shared or self.image(first_seed + index), self.size, first_seed + index, **fields)
            for index in range(count)
        ]

    def image(self, seed: int) -> bytes:
        """An image that no other scenario uses."""
        return picture(*self.size, self.same_image, self.return_logits, self.clients, seed)


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
    *(Scenario(FULL_HD, same, True, 4, 3, 4, 24 if same else 8) for same in BOTH),
    Scenario(FULL_HD, True, False, 4, 3, 4, 24),
    *(
        Scenario(size, same, logits, 1, 3, 1, 4 if same else 2)
        for size in (FULL_HD, VGA)
        for same in BOTH
        for logits in BOTH
    ),
    *(Scenario(VGA, same, True, 4, 1, 4, 24 if same else 8) for same in BOTH),
    # One request after the other, the naive server answers as many a second whether six wait or sixteen.
    *(
        Scenario(size, same, True, 16, 1, 6, 64 if same else 16)
        for size, same in ((FULL_HD, True), (VGA, False), (FULL_HD, False))
    ),
]
QUICK = [
    Scenario(VGA, False, True, 1, 1, 1, 2),
    *(Scenario(FULL_HD, same, logits, 4, 1, 2, 8) for same, logits in ((False, True), (True, True), (True, False))),
]

# Throughput is what many clients get together: four keep both servers busy all the time.
BUDGET_SCENARIOS = {
    "new image": (FULL_HD, False, True, 4),
    "same image": (FULL_HD, True, True, 4),
    "same image small": (FULL_HD, True, False, 4),
    "same image small, stretch": (FULL_HD, True, False, 4),
}
STAND_IN = "0/1 masks stand in for RLE, which the service does not have yet, and an upload for image_id"


def run(workplace: Workplace) -> Findings:
    """Compares both servers in every scenario."""
    scenarios = QUICK if workplace.quick else FULL
    with naive_server(workplace) as naive, service(workplace, Configuration()) as served:
        for server in (naive, served):
            load(server.url, [point_request(picture(*VGA, 1), VGA, 0)], clients=1)
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
        load(served.url, scenario.requests(0, 1), clients=1)
    for number in range(scenario.rounds):
        first_seed = 1000 * (number + 1)
        turns = [
            (naive, scenario.naive_requests, comparison.naive),
            (served, scenario.service_requests, comparison.served),
        ]
        for server, count, loads in turns[:: -1 if number % 2 else 1]:
            loads.append(load(server.url, scenario.requests(first_seed, count), scenario.clients))
    return comparison


def _rows(comparisons: list[Comparison], precision: str) -> list[Row]:
    by_key = {_key(one.scenario): one for one in comparisons}
    precision = f"naive float32, service {precision}"
    rows = []
    for budget, key in BUDGET_SCENARIOS.items():
        if key in by_key:
            note = f"{key[3]} clients, {by_key[key].scenario.rounds} rounds"
            note += f"; {STAND_IN}" if budget.startswith("same image small") else ""
            rows.append(_row(by_key[key], precision, note, budget))
    return rows + [_row(one, precision) for one in comparisons if _key(one.scenario) not in BUDGET_SCENARIOS.values()]


def _row(comparison: Comparison, precision: str, note: str = "", budget: str = "") -> Row:
    if comparison.num_failed:
        note += f"{'; ' * bool(note)}{comparison.num_failed} requests failed"
    spread = comparison.ratio
    if budget:
        return budget_row(budget, spread.median, precision, comparison.scenario.name, spread=spread, note=note)
    return Row(comparison.scenario.name, spread.median, precision, unit="×", spread=spread, note=note)


def _key(scenario: Scenario) -> tuple[tuple[int, int], bool, bool, int]:
    return scenario.size, scenario.same_image, bool(scenario.return_logits), scenario.clients


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
