"""A worker pod that ends waits for its replicas, and no longer than it must."""

import io
import subprocess
from typing import Any

import pytest
import yaml

from tests.cluster_files import ROOT, rayservice, script, worker_groups


class Pod:
    """Processes of a made-up pod, whose replicas end one by one, and HAProxy after them."""

    def __init__(self, replicas: int, accepts: bool = True, has_head: bool = True) -> None:
        self.left = replicas
        self.accepts = accepts
        self.has_head = has_head
        self.seconds = 0.0
        self.commands: list[list[str]] = []

    def processes(self, _: list[str]) -> list[Any]:
        lines = [["ray::ServeReplica:segment-anything-2:RequestParser"]] * (self.left - 1)
        lines += [["/x/haproxy", "-f", "file"]] * (self.left > 0)
        lines += [["/x/raylet", "--node_id=ab12", "--gcs-address=10.0.0.1:6379", "--other"], ["ray::IDLE"], []]
        names = [line[0].removeprefix("/x/") if line and line[0].startswith("/x/") else "other" for line in lines]
        infos = zip(names, lines, strict=True)
        return [type("Process", (), {"info": {"name": name, "cmdline": line}}) for name, line in infos]

    def run(self, command: list[str], **_: Any) -> None:
        self.commands.append(command)
        if not self.accepts:
            raise subprocess.CalledProcessError(1, command)

    def sleep(self, seconds: float) -> None:
        # Without a head nobody ends them.
        self.left -= self.has_head
        self.seconds += seconds

    def connect(self, address: tuple[str, int], timeout: float) -> Any:
        assert (address, timeout) == (("10.0.0.1", 6379), 2)
        if not self.has_head:
            raise ConnectionRefusedError
        return io.BytesIO()


def drained(pod: Pod, monkeypatch: pytest.MonkeyPatch, deadline_s: float = 600) -> int:
    program = script("drain.py")
    monkeypatch.setattr(program.psutil, "process_iter", pod.processes)
    monkeypatch.setattr(program.subprocess, "run", pod.run)
    monkeypatch.setattr(program.time, "sleep", pod.sleep)
    monkeypatch.setattr(program.time, "monotonic", lambda: pod.seconds)
    monkeypatch.setattr(program.socket, "create_connection", pod.connect)
    return int(program.drain(deadline_s))


def test_a_pod_that_ends_waits_for_its_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(replicas=3)
    assert drained(pod, monkeypatch) == 0
    assert pod.left == 0
    [command] = pod.commands
    assert command[0].endswith("/ray")
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert options["--node-id"] == "ab12"
    assert options["--address"] == "10.0.0.1:6379"
    assert options["--deadline-remaining-seconds"] == "600"


def test_ray_knows_the_drain_command_with_these_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.scripts.scripts import cli

    pod = Pod(replicas=1)
    drained(pod, monkeypatch)
    known = cli.commands[pod.commands[0][1]]
    parsed = known.make_context("drain-node", pod.commands[0][2:]).params
    assert parsed["reason"] == "DRAIN_NODE_REASON_PREEMPTION"


def test_a_pod_without_replicas_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(replicas=0)
    assert drained(pod, monkeypatch) == 0
    assert pod.commands == []


def test_a_pod_waits_no_longer_where_ray_refuses_or_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Pod(replicas=5, accepts=False)
    assert drained(refused, monkeypatch) == 1
    assert refused.left == 5
    late = Pod(replicas=5)
    assert drained(late, monkeypatch, deadline_s=0) == 1
    assert late.left == 5


def test_a_pod_does_not_wait_for_a_head_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(replicas=5, has_head=False)
    assert drained(pod, monkeypatch) == 1
    assert pod.seconds == script("drain.py").HEAD_GONE_S


def test_pods_have_the_time_to_end() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    [parser] = [one for one in config["applications"][0]["deployments"] if one["name"] == "RequestParser"]
    answers_s = parser["graceful_shutdown_timeout_s"]
    assert rayservice()["spec"]["rayClusterDeletionDelaySeconds"] > answers_s
    deadline_s = script("drain.py").DEADLINE_S
    assert deadline_s > answers_s
    for group in worker_groups().values():
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > deadline_s
