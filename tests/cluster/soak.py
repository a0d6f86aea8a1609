"""Ten minutes of mixed load while something is killed every 20 seconds: `make soak`, or python -m tests.cluster.soak.

Asked by the project's own client, as who builds on the service would: uploads, prompts by id, everything in small
pictures. The figures go to benchmarks/results.
"""

import argparse
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from deployments.client import Client
from harness.checked_load import Mask, Question, Report, answered, by_client, load, questions
from harness.processes import ProcessTree
from harness.serve import free_port
from tests.cluster import nodes
from tests.cluster.test_faults import BACK, FRONT, MODEL, document, kill, kill_controller, kill_proxy
from tuning.hardware import describe, summary

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

FAULTS: dict[str, Callable[[], None]] = {
    "a model replica": lambda: kill(MODEL),
    "an encoder replica": lambda: kill("ResponseEncoder"),
    "a parser": lambda: kill("RequestParser"),
    "both model replicas": lambda: kill(MODEL, 2),
    "the controller": kill_controller,
    "HAProxy": kill_proxy,
}


def mixed(url: str) -> Callable[[Question], Mask]:
    """Prompts by upload and by id; every twentieth request also asks for everything."""
    prompt, client, count = by_client(url), Client(url, timeout_s=120), itertools.count(1)

    def ask(question: Question) -> Mask:
        if next(count) % 20 == 0:
            # A grid of nine points: what it finds is not compared, that it is answered is.
            client.auto(question.image, points_per_side=3, pred_iou_thresh=0.1, stability_score_thresh=0.1)
        return prompt(question)

    return ask


def soak(minutes: float, every_s: float) -> dict[str, Any]:
    """Runs it; the figures."""
    killed: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(nodes.several_nodes([FRONT, BACK, BACK]))
        url = nodes.deploy(document(free_port()))
        known = answered(questions(6), by_client(url))
        ask, tree = mixed(url), ProcessTree(os.getpid())
        memory = [sum(tree.memory().values())]
        with load("soak", known, ask) as report:
            for name, act in _turns(minutes * 60, every_s):
                act()
                killed[name] += 1
                memory.append(sum(tree.memory().values()))
                print(f"killed {name}; {len(report.outcomes)} answered, {len(report.lost)} lost", flush=True)
    return _figures(report, killed, memory, minutes, every_s)


def _turns(seconds: float, every_s: float) -> Iterator[tuple[str, Callable[[], None]]]:
    """The faults, one after the other, at their times."""
    started = time.monotonic()
    for turn, (name, act) in enumerate(itertools.cycle(FAULTS.items()), start=1):
        time.sleep(max(0.0, started + turn * every_s - time.monotonic()))
        if time.monotonic() - started >= seconds:
            return
        yield name, act


def _figures(report: Report, killed: Counter[str], memory: list[int], minutes: float, every_s: float) -> dict[str, Any]:
    seconds = sorted(outcome.seconds for outcome in report.outcomes)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": describe(),
        "minutes": minutes,
        "fault_every_s": every_s,
        "killed": dict(killed),
        "sent": len(report.outcomes),
        "right": len(report.outcomes) - len(report.lost),
        "late": report.late,
        "lost": len(report.lost),
        "errors": dict(Counter(outcome.error[:120] for outcome in report.lost)),
        "median_s": seconds[len(seconds) // 2],
        "slowest_s": seconds[-1],
        "memory_first_mb": round(memory[0] / 1e6),
        "memory_last_mb": round(memory[-1] / 1e6),
    }


def main() -> int:
    """Runs it, writes the figures; 1 if a request was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every", type=float, default=20, help="seconds between two faults")
    options = parser.parse_args()
    figures = soak(options.minutes, options.every)
    path = RESULTS / f"{figures['date'][:10]}-soak.json"
    path.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
    shown = {name: value for name, value in figures.items() if name != "hardware"}
    print(summary(figures["hardware"]), *(f"{name}: {value}" for name, value in shown.items()), sep="\n")
    return 1 if figures["lost"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
