"""A running service from the inside: redeploying it, killing replicas, and the handle that Python programs call."""

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import ray
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve._private.common import ReplicaState
from ray.serve.schema import ServeDeploySchema
from ray.util import list_named_actors

from benchmarks.configuration import Configuration
from benchmarks.process_tree import ProcessTree
from benchmarks.servers import Server, answers, free_port
from benchmarks.workplace import ROOT
from deployments.settings import APP_NAME

DEPLOY_TIMEOUT_S = 240.0


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
        _wait_for_http(server)
        yield server
    finally:
        # Ray reports the end of Serve's controller as if it were a fault.
        with contextlib.redirect_stdout(io.StringIO()):
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def _wait_for_http(server: Server) -> None:
    """Waits until the proxy has learned of the application, which it does a moment after it runs."""
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while not answers(server.url):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{server.url}/ready did not answer within {DEPLOY_TIMEOUT_S:g} s")
        time.sleep(0.1)


def app_handle() -> Any:
    """The handle of the application, as Python programs get it."""
    return serve.get_app_handle(APP_NAME)


def deploy(server: Server, configuration: Configuration) -> None:
    """Deploys a changed config, as `serve deploy` does, and waits until the whole of it runs.

    Raises:
        RuntimeError: the deploy failed.
        TimeoutError: it did not end in time.
    """
    schema = ServeDeploySchema.model_validate(configuration.document(server.port))
    client = serve_start(http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location)
    client.deploy_apps(schema)
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while not _is_deployed(configuration):
        if time.monotonic() > deadline:
            raise TimeoutError(f"was not deployed within {DEPLOY_TIMEOUT_S:g} s: {serve.status().applications}")
        time.sleep(0.25)


def _is_deployed(configuration: Configuration) -> bool:
    application = serve.status().applications.get(APP_NAME)
    if application is None:
        return False
    if application.status == "DEPLOY_FAILED":
        raise RuntimeError(f"the deploy failed: {application.message}")
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
