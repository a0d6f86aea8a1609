"""Requests that fail while replicas are killed and while the application is updated, under a steady load."""

import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks.report import Findings, Row, budget_row
from benchmarks.servers import Server, deploy, kill_replica, local_service
from benchmarks.workplace import DEMO, Configuration, Workplace
from harness.images import noise
from harness.load import Load, continuous_load, percentile, point_request
from tuning.fragment import model_options
from tuning.tables import Table

SIZE = (320, 240)
CLIENTS = 4
NUM_IMAGES = 8

CONFIGURATION = Configuration(DEMO, replicas=2, model={"torch_threads": 1})
LIVE = replace(CONFIGURATION, model_deployment={"user_config": {"max_batch_size": 4}})
# A different reservation makes new replicas; a megabyte of the node's memory is none to speak of.
ROLLED = replace(
    LIVE, model_deployment={**LIVE.model_deployment, "ray_actor_options": {**model_options(), "memory": 1e6}}
)
RESTARTED = replace(ROLLED, limits={"max_points": 999})


def run(workplace: Workplace) -> Findings:
    """One fault after the other, each under a load that begins before it and goes on after it."""
    loads: dict[str, Load] = {}
    with local_service(CONFIGURATION) as server:
        faults: dict[str, Callable[[], object]] = {
            "a model replica is killed": lambda: kill_replica(CONFIGURATION.deployment_name),
            "an encoder replica is killed": lambda: kill_replica("ResponseEncoder"),
            "user_config changes": lambda: deploy(server, LIVE),
            "model replicas are replaced": lambda: deploy(server, ROLLED),
            "every deployment is replaced": lambda: deploy(server, RESTARTED),
        }
        for name, fault in list(faults.items())[:: 3 if workplace.quick else 1]:
            loads[name] = under_load(server, fault, 2 if workplace.quick else 5, 5 if workplace.quick else 20)
            print(f"  {name}: {len(loads[name].failures)} of {len(loads[name].exchanges)} failed", flush=True)
    return Findings(
        _rows(loads, workplace.precision), [_table(loads)], {name: load.record() for name, load in loads.items()}
    )


def under_load(server: Server, fault: Callable[[], object], before_s: float, after_s: float) -> Load:
    """What becomes of requests around a fault."""
    images = [noise(*SIZE, 31, seed) for seed in range(NUM_IMAGES)]
    requests = [point_request(images[index % NUM_IMAGES], SIZE, index) for index in range(10 * NUM_IMAGES)]
    with continuous_load(server.url, requests, CLIENTS) as finish:
        time.sleep(before_s)
        fault()
        time.sleep(after_s)
        return finish()


def _rows(loads: dict[str, Load], precision: str) -> list[Row]:
    killed = [load for name, load in loads.items() if name.endswith("killed")]
    rolled = [load for name, load in loads.items() if name in ("user_config changes", "model replicas are replaced")]
    rows = [
        _row(budget, some, precision)
        for budget, some in (("replica killed", killed), ("rolling update", rolled))
        if some
    ]
    if (whole := loads.get("every deployment is replaced")) is not None:
        failed = len(whole.failures)
        note = f"of {len(whole.exchanges)}; a change in `args`, with one parser and one encoder"
        rows.append(Row("whole application replaced under load: failed requests", failed, precision, note=note))
    return rows


def _row(budget: str, loads: list[Load], precision: str) -> Row:
    failures = [failure for load in loads for failure in load.failures]
    note = f"of {sum(len(load.exchanges) for load in loads)}, {CLIENTS} clients, 2 model replicas"
    if failures:
        note += f"; the first: {failures[0].status} {failures[0].error[:100]}"
    return budget_row(budget, float(len(failures)), precision, note=note)


def _table(loads: dict[str, Load]) -> Table:
    lines = []
    for name, load in loads.items():
        seconds = [exchange.seconds for exchange in load.exchanges]
        figures = [f"{value:.2f}" for value in (percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds))]
        lines.append([name, str(len(load.exchanges)), str(len(load.failures)), *figures])
    columns = ("meanwhile", "requests", "failed", "median s", "99th percentile s", "slowest s")
    return Table(f"Faults under load, {CLIENTS} clients", columns, lines)
