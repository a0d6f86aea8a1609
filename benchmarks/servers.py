"""Starts, redeploys and stops what is measured: the plain server and the service, each as a user would start it."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import ray
import yaml
from ray import serve
from ray.serve._private.common import ReplicaState
from ray.util import list_named_actors

from benchmarks.workplace import ROOT, TINY, Configuration, Workplace
from deployments.settings import APP_NAME
from harness.processes import ProcessTree
from harness.serve import answers, free_port, shut_down, wait_for_http, wait_until
from harness.serve import deploy as deploy_document

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0

HA_PROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
"""HAProxy in front of the parsers themselves, which the launcher chooses where ray[serve] brought it."""

SERVE_PROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
"""Serve's own proxy."""

NOT_INHERITED = {"AUTH_TOKEN", "RAY_ADDRESS", "RAY_SERVE_ENABLE_HA_PROXY"}


class ServerError(Exception):
    """A server did not start; the message has the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    tree: ProcessTree

    @property
    def port(self) -> int:
        """Its HTTP port."""
        return int(self.url.rpartition(":")[2])


@contextmanager
def naive_server(workplace: Workplace, model_id: str = TINY) -> Iterator[Server]:
    """The plain way: benchmarks/comparison/naive_server.py, by uvicorn with one worker."""
    port = free_port()
    command = ["-m", "benchmarks.comparison.naive_server", "--port", str(port), "--model-id", model_id]
    with _server("naive", command, port, workplace, {}) as server:
        yield server


@contextmanager
def service(
    workplace: Workplace, configuration: Configuration, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The service, by its launcher, on a Ray cluster of its own.

    Args:
        workplace: gives it the weights and a place for its log.
        configuration: its config file.
        environment: variables for it and for Ray, such as HA_PROXY.
    """
    port = free_port()
    config = workplace.folder / f"config-{port}.yaml"
    config.write_text(yaml.safe_dump(configuration.document(port)))
    command = ["-m", "deployments", "--config", str(config), "--port", str(port)]
    with _server("service", command, port, workplace, environment or {}) as server:
        yield server


@contextmanager
def _server(
    name: str, command: Sequence[str], port: int, workplace: Workplace, environment: Mapping[str, str]
) -> Iterator[Server]:
    log = workplace.folder / f"{name}-{port}.log"
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C is for the benchmark, which then stops its servers itself.
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=_environment(workplace, environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    tree = ProcessTree(process.pid)
    try:
        server = Server(f"http://127.0.0.1:{port}", tree)
        _wait_until_ready(server, process, log)
        yield server
    finally:
        _stop(process, tree)


def _environment(workplace: Workplace, more: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return {
        **inherited,
        "HF_HUB_CACHE": str(workplace.hub_cache),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        **more,
    }


def _wait_until_ready(server: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Waits for GET /ready, and for the launcher's own word, since /ready speaks of one replica only."""
    launched = "naive" in log.name
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"ended with code {process.returncode}: {_tail(log)}")
        launched = launched or "ready:" in log.read_text(errors="replace")
        if launched and answers(server.url, "/ready"):
            return
        time.sleep(0.25)
    raise ServerError(f"was not ready within {START_TIMEOUT_S:g} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]


def _stop(process: "subprocess.Popen[bytes]", tree: ProcessTree) -> None:
    """Asks the server to end; ends those of its processes that are still there afterwards."""
    started = tree.processes()
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs([one for one in started if one.pid != process.pid], timeout=10)
    for one in left:
        # psutil compares the start time too, so this is the process that was started here.
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


# ---- a running service from the inside


@contextmanager
def local_service(configuration: Configuration) -> Iterator[Server]:
    """The service on a Ray cluster that this very process starts, and so may deploy to and call handles on."""
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", ProcessTree(os.getpid()))
    # Replicas import the benchmark's own model.
    with patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        ray.init(
            address="local",
            namespace="serve",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        deploy(server, configuration)
        wait_for_http(server.url, "/ready", START_TIMEOUT_S)
        yield server
    finally:
        shut_down()


def app_handle() -> Any:
    """The handle of the application, as Python programs get it."""
    return serve.get_app_handle(APP_NAME)


def deploy(server: Server, configuration: Configuration) -> None:
    """Deploys a changed config, and waits until the whole of it runs.

    Raises:
        RuntimeError: the deploy failed.
        TimeoutError: it did not end in time.
    """
    deploy_document(configuration.document(server.port), START_TIMEOUT_S)
    wait_until(lambda: _is_deployed(configuration), START_TIMEOUT_S, "deployed")


def _is_deployed(configuration: Configuration) -> bool:
    application = serve.status().applications.get(APP_NAME)
    if application is None:
        return False
    deployment = application.deployments.get(configuration.deployment_name)
    # Of a rolling update the last old replica may still be stopping; it is then told beside those that run.
    states = deployment.replica_states if deployment else {}
    return application.status == "RUNNING" and states == {ReplicaState.RUNNING: configuration.replicas}


def kill_replica(deployment: str) -> int:
    """Kills one replica of a deployment, as a crash would; returns how many there were."""
    names = [entry["name"] for entry in list_named_actors(all_namespaces=True)]
    replicas = sorted(name for name in names if name.startswith("SERVE_REPLICA::") and f"#{deployment}#" in name)
    if replicas:
        ray.kill(ray.get_actor(replicas[0], namespace="serve"))
    return len(replicas)
