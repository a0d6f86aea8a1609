"""Ray clusters of several nodes on this machine, each with ports, files and processes of its own.

with several_nodes([{"num_cpus": 0}, {"num_cpus": 2}, {"num_cpus": 2}]) as cluster:
    url = deploy(service_document(models=[DEMO], deployments=[...]))
    cluster.remove_node(next(iter(cluster.worker_nodes)))
"""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.util import get_node_ip_address

from deployments.environment import prepare_environment
from deployments.settings import APP_NAME
from harness import serve

ROOT = Path(__file__).parents[2]

HEAD_ATTEMPTS = 3

COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")

HEAD_NODE_ID = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}

AUTOSCALER_ENVIRONMENT = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
"""What ray.cluster_utils.AutoscalingCluster sets."""


@dataclass(frozen=True)
class Replica:
    """One replica, as Serve's controller knows it; one that waits for a node has neither node nor process."""

    deployment: str
    replica_id: str
    state: str
    node_id: str | None
    pid: int | None


@contextmanager
def several_nodes(node_resources: Sequence[Mapping[str, Any]]) -> Iterator[Cluster]:
    """A cluster whose nodes the test itself adds (`add_node`) and removes (`remove_node`); the driver is connected.

    Args:
        node_resources: for each node what `Cluster.add_node` takes, such as num_cpus, num_gpus and resources. The first
            is the head, where Serve's controller and HAProxy run; with `num_cpus: 0` no replica that needs a CPU does.
    """
    head, *workers = node_resources
    with _own_environment(), _cluster(lambda: {**head, "include_dashboard": False}) as cluster:
        for resources in workers:
            cluster.add_node(**resources)
        with _driver(cluster.address):
            yield cluster


@contextmanager
def autoscaling_nodes(
    head: Mapping[str, Any], worker: Mapping[str, float], max_workers: int, idle_timeout_s: float = 5
) -> Iterator[Cluster]:
    """A cluster whose nodes Ray's own autoscaler (v2) starts and ends; the driver is connected.

    Ray's AutoscalingCluster does the same, but runs `ray stop --force`, which ends every Ray on the machine.

    Args:
        head: what `Cluster.add_node` takes, for the only node that is there from the start.
        worker: the resources of one worker node, such as `{"CPU": 2, "GPU": 1}`.
        max_workers: worker nodes at most; at first there is none.
        idle_timeout_s: a worker node that nothing uses for so long is ended.
    """
    with _own_environment() as folder:

        def with_autoscaler() -> dict[str, Any]:
            port, config = serve.free_port(), folder / "autoscaling.json"
            config.write_text(json.dumps(_autoscaling_config(worker, max_workers, idle_timeout_s, port)))
            more = {"gcs_server_port": port, "autoscaling_config": str(config), "env_vars": HEAD_NODE_ID}
            return {**head, **more, "include_dashboard": False}

        environment = patch.dict(os.environ, AUTOSCALER_ENVIRONMENT)
        with environment, _cluster(with_autoscaler) as cluster, _driver(cluster.address):
            yield cluster


def _autoscaling_config(
    worker: Mapping[str, float], max_workers: int, idle_timeout_s: float, head_port: int
) -> dict[str, Any]:
    return {
        "cluster_name": "tests",
        # By its class: under its name, `fake_multinode`, Ray looks for a file of defaults that its wheel does not have.
        "provider": {
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__qualname__}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": f"{get_node_ip_address()}:{head_port}",  # type: ignore[no-untyped-call]
            "launch_multiple": True,
            # Otherwise the autoscaler would log in on each node to install Ray there.
            "disable_node_updaters": True,
        },
        "max_workers": max_workers,
        "idle_timeout_minutes": idle_timeout_s / 60,
        "upscaling_speed": 1.0,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": dict(worker),
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_workers,
            },
        },
        "auth": {},
        "cluster_synced_files": [],
        # Nothing is run there, but Ray wants to be told so.
        **{f"{what}_commands": [] for what in COMMANDS},
    }


def service_document(
    models: Sequence[Any], deployments: Sequence[Mapping[str, Any]], port: int | None = None, **args: Any
) -> dict[str, Any]:
    """A config document of the service, with HAProxy on the head node only: all nodes share this machine's ports.

    Args:
        models: `args.models`; the first answers by default.
        deployments: the entries of `deployments`.
        port: where the service listens; None: wherever it is free.
        args: more of `args`.
    """
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port or serve.free_port()},
        "applications": [
            {
                "name": APP_NAME,
                "route_prefix": "/",
                "import_path": "deployments.app:build",
                "args": {"models": list(models), **args},
                "deployments": [dict(entry) for entry in deployments],
            }
        ],
    }


def deploy(document: dict[str, Any], timeout_s: float = 240) -> str:
    """Deploys a config document on the cluster; the service's URL, once it is RUNNING and answers there."""
    serve.deploy(document, timeout_s)
    options = document["http_options"]
    url = f"http://{options['host']}:{options['port']}"
    serve.wait_for_http(url)
    return url


def replicas(deployment: str, state: str = "RUNNING") -> list[Replica]:
    """The replicas of a deployment that are in a state (STARTING, RUNNING, STOPPING, …)."""
    client = _get_global_client()
    assert client is not None
    application = client.get_serve_details()["applications"].get(APP_NAME)
    entry = application["deployments"].get(deployment) if application else None
    return [
        Replica(deployment, one["replica_id"], str(one["state"].value), one.get("node_id"), one.get("pid"))
        for one in (entry["replicas"] if entry else [])
        if one["state"] == state
    ]


def living_nodes() -> list[str]:
    """The ids of the cluster's living nodes, the head's among them."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["NodeID"] for node in nodes if node["Alive"]]


@contextmanager
def _own_environment() -> Iterator[Path]:
    """What the nodes inherit, so that neither files nor ports are shared with another Ray here; the folder for them."""
    # Short: the names of the sockets below it may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="sam2-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        haproxy = Path(folder) / "haproxy"
        mine = {
            "RAY_TMPDIR": folder,
            "PYTHONPATH": str(ROOT),
            "RAY_worker_niceness": "0",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(serve.free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(serve.free_port()),
        }
        with patch.dict(os.environ, mine):
            os.environ.pop("AUTH_TOKEN", None)
            os.environ.pop("RAY_ADDRESS", None)
            prepare_environment()
            yield Path(folder)


class _Processes:
    """The processes below this one that are started from now on."""

    def __init__(self) -> None:
        self._before = set(self._all())
        self._noted: set[psutil.Process] = set()

    def note(self) -> None:
        """Remembers those that are there: whose parent ends before them is not found any more."""
        self._noted.update(set(self._all()) - self._before)

    def end(self) -> None:
        """Ends those that are still there."""
        self.note()
        left = list(self._noted)
        for act in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                # psutil compares the start time too, so this is the process that was started here.
                with contextlib.suppress(psutil.NoSuchProcess):
                    act(process)
            _, left = psutil.wait_procs(left, timeout=10)

    @staticmethod
    def _all() -> list[psutil.Process]:
        return psutil.Process().children(recursive=True)


@contextmanager
def _cluster(head: Callable[[], dict[str, Any]]) -> Iterator[Cluster]:
    """A cluster with its head, and the driver once the caller connects it; nothing of it is left afterwards.

    Args:
        head: makes what `Cluster.add_node` takes for the head, anew for each attempt to start it.
    """
    processes = _Processes()
    try:
        cluster = _start(head, processes)
        try:
            yield cluster
        finally:
            # Worker nodes that the autoscaler started are its children, and outlive it.
            processes.note()
            cluster.shutdown()  # type: ignore[no-untyped-call]
    finally:
        processes.end()


def _start(head: Callable[[], dict[str, Any]], processes: _Processes) -> Cluster:
    for _ in range(HEAD_ATTEMPTS - 1):
        try:
            return Cluster(initialize_head=True, head_node_args=head())
        except Exception as error:
            # Ray waits half a minute for the first answer of a new head, which on a busy machine sometimes never comes.
            if "timed out during startup" not in str(error):
                raise
            processes.end()
    return Cluster(initialize_head=True, head_node_args=head())


@contextmanager
def _driver(address: str) -> Iterator[None]:
    """This process as the cluster's driver, until Serve has been shut down again."""
    ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        serve.shut_down()
