"""Replicas, a node, the controller and the proxy are killed (SIGKILL) under load, and all is updated: what is lost?

pytest tests/cluster/test_faults.py -s    shows the table.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from harness.checked_load import HEADER, Question, Report, answered, by_client, load, post, questions
from harness.serve import free_port
from tests.cluster import nodes
from tests.integration.conftest import DEMO

pytestmark = pytest.mark.timeout(600)

MODEL = f"Sam2Model:{DEMO}"
FRONT: dict[str, Any] = {"num_cpus": 0, "resources": {"front": 100}}
BACK: dict[str, Any] = {"num_cpus": 0, "resources": {"back": 2}}
"""Parsers and encoders are on the head; each worker node has room for a model replica and for its successor."""

MAY_BE_SENT_AGAIN = ("the process that answered ended", "Server disconnected without sending a response")

NOT_YET_BACK = ("Connection refused", "the service is starting")

reports: list[Report] = []


def document(port: int, model: dict[str, Any] | None = None, **args: Any) -> dict[str, Any]:
    """The service with two model replicas on two nodes, two parsers, two encoders."""
    front = {"num_cpus": 0, "resources": {"front": 1}}
    parser = {**front, "runtime_env": {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}}}
    back = {"num_cpus": 0, "resources": {"back": 1}}
    return nodes.service_document(
        [{"model_id": DEMO, "torch_threads": 1, "precision": "float32"}],
        [
            {"name": "RequestParser", "num_replicas": 2, "ray_actor_options": parser},
            {"name": "ResponseEncoder", "num_replicas": 2, "ray_actor_options": front},
            {"name": "VideoReader", "num_replicas": 2, "ray_actor_options": front},
            {
                "name": MODEL,
                "autoscaling_config": {"min_replicas": 2, "max_replicas": 2},
                "ray_actor_options": back,
                **(model or {}),
            },
        ],
        port,
        **args,
    )


@dataclass
class Running:
    """The service, and questions whose answers are known."""

    cluster: Cluster
    url: str
    port: int
    known: list[Question]


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    port = free_port()
    with nodes.several_nodes([FRONT, BACK, BACK]) as cluster:
        url = nodes.deploy(document(port))
        yield Running(cluster, url, port, answered(questions(6), post(url)))
    print("\n" + "\n".join([HEADER, *(report.line() for report in reports)]))


def under_load(
    service: Running, fault: str, act: Callable[[], object], after_s: float = 10, asked_by: str = "post"
) -> Report:
    """Does something in the middle of a load."""
    whole(service)
    ask = post(service.url) if asked_by == "post" else by_client(service.url)
    with load(fault, service.known, ask) as report:
        time.sleep(3)
        act()
        time.sleep(after_s)
    reports.append(report)
    print("\n" + report.line(), flush=True)
    # The replicas went on serving, and enough was asked for the fault to meet somebody.
    assert len(report.outcomes) > 4
    return report


def whole(service: Running, timeout_s: float = 90) -> None:
    """Waits until everything that a fault took is back."""
    wanted = {MODEL: 2, "RequestParser": 2, "ResponseEncoder": 2}
    deadline = time.monotonic() + timeout_s
    while {name: len(nodes.replicas(name)) for name in wanted} != wanted:
        assert time.monotonic() < deadline, {name: nodes.replicas(name) for name in wanted}
        time.sleep(0.5)


def kill(deployment: str, count: int = 1) -> None:
    """Kills replicas of a deployment."""
    for replica in nodes.replicas(deployment)[:count]:
        assert replica.pid is not None
        os.kill(replica.pid, signal.SIGKILL)


def kill_controller() -> None:
    """Kills the process of Serve's controller."""
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    pid: Any = ray.get(controller.get_pid.remote())
    os.kill(pid, signal.SIGKILL)


def kill_controller_and_model() -> None:
    kill(MODEL)
    kill_controller()


def haproxies() -> list[psutil.Process]:
    """The HAProxy processes of this cluster."""
    folder = os.environ["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"]
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if "haproxy" in (process.info["name"] or "") and any(folder in word for word in process.info["cmdline"] or [])
    ]


def kill_proxy() -> None:
    """Kills HAProxy, and the actor that watches over it."""
    found = haproxies()
    assert found
    for process in found:
        process.kill()


@pytest.mark.parametrize(
    ("fault", "act", "after_s"),
    [
        ("one of two model replicas killed", lambda: kill(MODEL), 10),
        ("both model replicas killed", lambda: kill(MODEL, 2), 25),
        ("both encoder replicas killed", lambda: kill("ResponseEncoder", 2), 12),
        ("controller and a model replica killed", kill_controller_and_model, 18),
    ],
)
def test_no_request_is_lost_where(service: Running, fault: str, act: Callable[[], object], after_s: float) -> None:
    assert under_load(service, fault, act, after_s).lost == []


def test_no_request_is_lost_where_a_whole_node_dies(service: Running) -> None:
    def kill_node() -> None:
        victim = service.cluster.list_all_nodes()[-1]  # type: ignore[no-untyped-call]
        service.cluster.remove_node(victim, allow_graceful=False)
        service.cluster.add_node(**BACK)

    assert under_load(service, "a worker node killed", kill_node, 25).lost == []


@pytest.mark.long
def test_no_request_is_lost_while_the_service_is_updated(service: Running) -> None:
    changed: dict[str, Any] = {"user_config": {"max_batch_size": 4}}
    updates = {
        "user_config changes": document(service.port, changed),
        "args change: every replica is replaced": document(service.port, changed, limits={"max_points": 999}),
        "a new version of the code": document(service.port, changed, limits={"max_points": 999}),
    }
    updates["a new version of the code"]["applications"][0]["import_path"] = "tests.cluster.next_version:build"
    for what, updated in updates.items():
        before = {replica.replica_id for replica in nodes.replicas("RequestParser")}
        assert under_load(service, what, partial(nodes.deploy, updated), 5).lost == []
        after = {replica.replica_id for replica in nodes.replicas("RequestParser")}
        assert (before == after) == (what == "user_config changes")


def test_a_parser_that_dies_costs_at_most_what_it_had_and_says_that_it_may_be_sent_again(service: Running) -> None:
    report = under_load(service, "one of two parsers killed", lambda: kill("RequestParser"))
    # Four clients have at most four requests under way.
    assert len(report.lost) <= 4
    # HAProxy's own words; or none, on a connection that it used before: then HTTP allows to send it again.
    assert all(any(word in outcome.error for word in MAY_BE_SENT_AGAIN) for outcome in report.lost)
    assert max(outcome.seconds for outcome in report.outcomes) < 30


@pytest.mark.parametrize(
    ("fault", "act"),
    [
        ("both parsers killed, our client", lambda: kill("RequestParser", 2)),
        ("HAProxy killed, our client", kill_proxy),
    ],
)
def test_our_client_loses_nothing_where(service: Running, fault: str, act: Callable[[], object]) -> None:
    assert under_load(service, fault, act, 20, "client").lost == []


def test_a_proxy_that_dies_costs_only_what_was_inside_it(service: Running) -> None:
    report = under_load(service, "HAProxy killed", kill_proxy, 20)
    print(Counter(outcome.error[:90] for outcome in report.lost))
    # Nobody listens; then somebody does, and for a moment knows nothing of the service.
    refused = [outcome for outcome in report.lost if any(word in outcome.error for word in NOT_YET_BACK)]
    assert len(report.lost) - len(refused) <= 4
    # Three health checks, two seconds apart, and a new one starts.
    assert refused[-1].sent_at - refused[0].sent_at < 20
    assert report.outcomes[-1].right
    assert max(outcome.seconds for outcome in report.outcomes) < 30
