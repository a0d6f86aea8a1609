"""Replicas and nodes follow the load, on Ray's own autoscaler: the real service, real HTTP, nodes of one GPU each.

No machine is needed that has GPUs: the nodes only say that they have one, and the bundled model runs on the CPU. How
soon replicas come and go is set far shorter here than serve_config.yaml has it.
"""

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from pycocotools import mask as coco
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from deployments.settings import BUNDLED_MODEL_ID, model_deployment_name
from harness.exported import Exported, scrape
from harness.images import encoded, iou, picture
from tests.cluster.nodes import ROOT, autoscaling_nodes, deploy, living_nodes, replicas, service_document
from tests.promql import alert_expressions, all_uses, dashboard_expressions

WARM, ON_DEMAND, BROKEN = BUNDLED_MODEL_ID, "tests/on-demand", "tests/broken"
MIN_REPLICAS, MAX_REPLICAS = 1, 4
MIN_NODES, MAX_NODES = 1, 2
CLIENTS = (2, 4, 8, 12)
IMAGE_SIZE = (160, 120)
MODEL_FOLDER = ROOT / "deployments" / "model" / "demo"

# Two cores run all replicas and nodes, and a replica takes long to start.
PATIENCE_S = 150.0
ON_CPU = {"precision": "float32", "device": "cpu", "torch_threads": 1}
SOON = {"look_back_period_s": 3, "metrics_interval_s": 1, "upscale_delay_s": 2, "downscale_delay_s": 4}
# As in serve_config.yaml: nodes with a GPU offer no processors, so parser and encoder keep none of them from ending.
ON_A_PROCESSOR = {"num_cpus": 1}

IMAGE = {"image": encoded(picture(*IMAGE_SIZE, 0))}
pytestmark = pytest.mark.long

HAPROXY_METRICS_PORT = "RAY_SERVE_HAPROXY_METRICS_PORT"

NOT_HERE = (
    *("ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"),
    *("ray_cluster_idle_nodes", "ray_cluster_pending_nodes", "ray_cluster_failed_nodes"),
)

NOT_BEFORE_A_VIDEO = ("ray_sam2_video_frames_decoded_total", "ray_sam2_track_state_bytes")
"""Exported from the first time on that objects are followed, which the bundled model cannot do."""

Masks = NDArray[np.uint8]


@dataclass(frozen=True)
class Question:
    """An image and a point on it."""

    image: bytes
    fields: dict[str, str]


@dataclass(frozen=True)
class Row:
    """What there was at one moment: a line of the table."""

    seconds: float
    clients: int
    running: int
    starting: int
    nodes: int
    answered: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:6.0f} {self.clients:8} {self.running:9} {self.starting:9} {self.nodes:6} {self.answered:9}"
        )


HEADINGS = "     s  clients  replicas  starting  nodes  answered"


def document() -> dict[str, Any]:
    """A warm model of up to four halves of a GPU, and one on demand that needs more than the half beside the first."""
    on_demand = {
        "model_id": ON_DEMAND,
        "checkpoint": str(MODEL_FOLDER / "sam2_demo.safetensors"),
        "config": str(MODEL_FOLDER / "sam2_demo.yaml"),
        **ON_CPU,
    }
    broken = {**on_demand, "model_id": BROKEN, "checkpoint": "/nowhere/at-all.pt"}
    return service_document(
        models=[{"model_id": WARM, **ON_CPU}, on_demand, broken],
        deployments=[
            {"name": "RequestParser", "ray_actor_options": ON_A_PROCESSOR, "user_config": {"model_wait_s": PATIENCE_S}},
            {"name": "ResponseEncoder", "ray_actor_options": ON_A_PROCESSOR},
            {"name": "VideoReader", "ray_actor_options": ON_A_PROCESSOR},
            {
                "name": model_deployment_name(WARM),
                "ray_actor_options": {"num_cpus": 0, "num_gpus": 0.5},
                "autoscaling_config": {
                    "min_replicas": MIN_REPLICAS,
                    "max_replicas": MAX_REPLICAS,
                    "target_ongoing_requests": 2,
                    **SOON,
                },
                # No image is remembered, so that every request is one for the encoder. Its wait for a batch leaves the
                # cores to the replicas that start.
                "user_config": {"cache_bytes": 0, "max_batch_size": 8, "batch_wait_timeout_s": 0.5},
            },
            {
                "name": model_deployment_name(ON_DEMAND),
                "ray_actor_options": {"num_cpus": 0, "num_gpus": 0.75},
                "autoscaling_config": {"min_replicas": 0, "max_replicas": 1, "downscale_to_zero_delay_s": 5, **SOON},
                # Room for one image (8.4 MB): the next one takes it.
                "user_config": {"cache_bytes": 12_000_000},
            },
            {
                "name": model_deployment_name(BROKEN),
                "ray_actor_options": {"num_cpus": 0},
                "autoscaling_config": {"min_replicas": 0, "max_replicas": 1, "downscale_to_zero_delay_s": 5, **SOON},
            },
        ],
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The service, on a cluster that has only its head at first."""
    with autoscaling_nodes({"num_cpus": 3}, {"CPU": 0, "GPU": 1}, MAX_NODES):
        assert len(living_nodes()) == 1
        yield deploy(document())


@pytest.fixture(scope="module")
def expected(url: str) -> list[tuple[Question, Masks]]:
    """Questions, each with what the idle service answers."""
    found = []
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        for seed in range(12):
            x, y = (int(length * (0.2 + 0.05 * seed)) for length in IMAGE_SIZE)
            fields = {"point_coords": f"[[{x},{y}]]", "point_labels": "[1]"}
            question = Question(encoded(picture(*IMAGE_SIZE, seed % 4)), fields)
            found.append((question, ask(client, question)))
    return found


def ask(client: httpx.Client, question: Question, model_id: str = WARM) -> Masks:
    """The three masks that a model answers; AssertionError if it does not."""
    fields = {**question.fields, "model_id": model_id, "response_format": "rle"}
    answer = client.post("/segment-anything-2", data=fields, files={"image": question.image})
    assert answer.status_code == 200, f"{answer.status_code} {answer.text[:300]}"
    masks: Masks = np.stack([coco.decode(record["segmentation"]) for record in answer.json()["masks"]])
    assert masks.shape == (3, *IMAGE_SIZE[::-1])
    return masks


def assert_same(found: Masks, wanted: Masks) -> None:
    """Up to what torch rounds differently when other prompts share a run."""
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other) or iou(one, other) > 0.99


def worker_nodes() -> int:
    return len(living_nodes()) - 1


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.5)


class Clients:
    """Clients that each ask one question after the other, and compare every answer with the idle service's."""

    def __init__(self, url: str, expected: Sequence[tuple[Question, Masks]]) -> None:
        self.seconds: list[float] = []
        self.faults: list[str] = []
        self.number = 0
        self._url = url
        self._questions = itertools.cycle(expected)
        self._drawing = threading.Lock()
        self._threads: list[threading.Thread] = []

    def set_number(self, number: int) -> None:
        """So many ask from now on; those that are too many end after the answer that they wait for."""
        self.number = number
        while len(self._threads) < number:
            self._threads.append(threading.Thread(target=self._work, args=(len(self._threads),)))
            self._threads[-1].start()

    def finish(self) -> None:
        """Returns once every question that was asked has its answer."""
        self.number = 0
        for thread in self._threads:
            thread.join()

    def _work(self, index: int) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as client:
            while index < self.number:
                with self._drawing:
                    question, wanted = next(self._questions)
                started = time.monotonic()
                try:
                    assert_same(ask(client, question), wanted)
                except (AssertionError, httpx.HTTPError) as fault:
                    self.faults.append(f"{type(fault).__name__}: {fault}")
                else:
                    self.seconds.append(time.monotonic() - started)


class Watch:
    """Says once a second what there is of replicas, nodes and answers."""

    def __init__(self, clients: Clients, say: Callable[[str], None]) -> None:
        self.rows: list[Row] = []
        self._clients = clients
        self._say = say
        self._started = time.monotonic()
        say("")
        say(HEADINGS)

    def until(self, condition: Callable[[Row], bool], patience_s: float = PATIENCE_S) -> bool:
        """Watches until the condition holds; whether it did in time."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if condition(self._look()):
                return True
            time.sleep(1)
        return False

    def _look(self) -> Row:
        model, clients = model_deployment_name(WARM), self._clients
        running, starting = (len(replicas(model, state)) for state in ("RUNNING", "STARTING"))
        seconds = time.monotonic() - self._started
        row = Row(seconds, clients.number, running, starting, worker_nodes(), len(clients.seconds))
        # Not what is the same as a second ago.
        if not self.rows or vars(row) | UNCOUNTED != vars(self.rows[-1]) | UNCOUNTED:
            self._say(str(row))
        self.rows.append(row)
        return row


UNCOUNTED = {"seconds": 0, "answered": 0}


@contextmanager
def states_of(url: str, model_id: str) -> Iterator[list[str]]:
    """The states of a model, as /models tells them, from the first to the latest."""
    states: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            while not ended.wait(0.2):
                models = client.get("/models").json()["models"]
                state = next(model["state"] for model in models if model["model_id"] == model_id)
                if states[-1:] != [state]:
                    states.append(state)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield states
    finally:
        ended.set()
        thread.join()


def test_a_model_on_demand_wakes_with_its_first_request_and_falls_asleep(
    url: str, expected: list[tuple[Question, Masks]], say: Callable[[str], None]
) -> None:
    question, wanted = expected[0]
    deployment = model_deployment_name(ON_DEMAND)
    (warm,) = replicas(model_deployment_name(WARM))
    assert worker_nodes() == 1
    with states_of(url, ON_DEMAND) as states, httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        wait_until(lambda: states == ["asleep"], "asleep at first")
        assert not replicas(deployment)
        started = time.monotonic()
        # The weights are the same, so the masks are.
        assert_same(ask(client, question, ON_DEMAND), wanted)
        waited = time.monotonic() - started
        (replica,) = replicas(deployment)
        assert replica.node_id != warm.node_id
        assert worker_nodes() == 2
        started = time.monotonic()
        assert_same(ask(client, question, ON_DEMAND), wanted)
        awake = time.monotonic() - started
        wait_until(lambda: states[-1] == "asleep", "asleep again")
        wait_until(lambda: worker_nodes() == MIN_NODES, "its node ended")
    assert states == ["asleep", "loading", "ready", "asleep"]
    say(f"on demand: {' → '.join(states)}; first request {waited:.1f} s with node and model, second {awake:.1f} s")


# Two minutes of load, and patience.
@pytest.mark.timeout(600)
def test_replicas_and_nodes_follow_the_load_and_no_request_is_lost(
    url: str, expected: list[tuple[Question, Masks]], say: Callable[[str], None]
) -> None:
    clients = Clients(url, expected)
    watch = Watch(clients, say)
    at_rest, at_work = (MIN_REPLICAS, MIN_NODES), (MAX_REPLICAS, MAX_NODES)
    try:
        assert watch.until(lambda row: (row.running, row.nodes) == at_rest)
        for number in CLIENTS:
            clients.set_number(number)
            watch.until(lambda row: (row.running, row.nodes) == at_work, patience_s=5)
        assert watch.until(lambda row: (row.running, row.nodes) == at_work)
        places = Counter(replica.node_id for replica in replicas(model_deployment_name(WARM)))
        assert sorted(places.values()) == [2, 2], "two replicas share a GPU"
        peak = len(clients.seconds)
        # All are put to work, and one client goes on while they end again: what is asked of them then is not lost.
        watch.until(lambda _: False, patience_s=5)
        assert len(clients.seconds) > peak
        clients.set_number(1)
        assert watch.until(lambda row: (row.running, row.starting, row.nodes) == (MIN_REPLICAS, 0, MIN_NODES))
    finally:
        clients.finish()
    assert not clients.faults, clients.faults[:10]
    say(
        f"replicas {MIN_REPLICAS} → {MAX_REPLICAS} → {MIN_REPLICAS}, nodes {MIN_NODES} → {MAX_NODES} → {MIN_NODES}, "
        f"{len(clients.seconds)} of {len(clients.seconds) + len(clients.faults)} requests answered, "
        f"the slowest in {max(clients.seconds):.1f} s"
    )


def exported() -> Exported:
    """What all nodes and HAProxy export together."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    ports = [node["MetricsExportPort"] for node in nodes if node["Alive"]]
    found = [scrape(f"http://127.0.0.1:{port}/metrics") for port in (*ports, os.environ[HAPROXY_METRICS_PORT])]
    names = {name for one in found for name in one.samples}
    return Exported({name: [sample for one in found for sample in one.samples.get(name, [])] for name in names})


def missing(wanted: Mapping[str, set[str]]) -> list[str]:
    """Of the metrics and labels that are asked for, those that nothing exports now."""
    now = exported()
    return [
        f"{metric}: {sorted(labels - now.labels(metric)) if metric in now.samples else 'not there'}"
        for metric, labels in wanted.items()
        if metric not in now.samples or not labels <= now.labels(metric)
    ]


def test_what_dashboard_and_alerts_ask_for_is_exported(url: str, expected: list[tuple[Question, Masks]]) -> None:
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        # What happens rarely is counted from the first time on.
        broken = client.post("/segment-anything-2", data={**expected[0][0].fields, "model_id": BROKEN}, files=IMAGE)
        assert broken.status_code == 503
        with ThreadPoolExecutor(1) as pool:
            [replica] = replicas(model_deployment_name(WARM))
            asked = [pool.submit(ask, client, question) for question, _ in expected[:3]]
            # The first is in the encoder.
            time.sleep(0.8)
            assert replica.pid is not None
            os.kill(replica.pid, signal.SIGKILL)
            for answer, (_, wanted) in zip(asked, expected, strict=False):
                assert_same(answer.result(), wanted)
    wanted_metrics = all_uses([*alert_expressions(), *dashboard_expressions()])
    # A series of Prometheus' own.
    wanted_metrics.pop("up")
    # What Ray exports of nodes with a GPU, and while there are nodes in a state: these names are known to it.
    for metric in NOT_HERE:
        assert metric.removeprefix("ray_") in METRICS_GAUGES
        wanted_metrics.pop(metric)
    for metric in NOT_BEFORE_A_VIDEO:
        wanted_metrics.pop(metric)
    assert len(wanted_metrics) > 30
    deadline = time.monotonic() + 120
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        while (left := missing(wanted_metrics)) and time.monotonic() < deadline:
            # Each image takes the other's place, and is a hit at once. What is asked stays awake.
            for question, wanted in (expected[0], expected[0], expected[1]):
                assert_same(ask(client, question, ON_DEMAND), wanted)
            time.sleep(1)
    assert not left, "\n".join(left)
