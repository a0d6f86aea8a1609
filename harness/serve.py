"""A Serve that this process deploys to: a free port for it, the deploy, and its end."""

import contextlib
import io
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def local_config(path: Path, **changes: Any) -> str:
    """Writes cluster/local.yaml with other `args`, and without options of models; returns the path."""
    document = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())
    application = document["applications"][0]
    application["args"] = changes
    application["deployments"] = [one for one in application["deployments"] if ":" not in one["name"]]
    path.write_text(yaml.safe_dump(document))
    return str(path)


def deploy(document: dict[str, Any], timeout_s: float = 240) -> None:
    """Deploys a config document on the running Ray, as `serve deploy` does, and waits until all of it is RUNNING.

    Raises:
        RuntimeError: the deploy failed.
        TimeoutError: it did not end in time.
    """
    # Here, since Ray is to see what prepare_environment sets before it is imported.
    from ray import serve
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(document)
    client = serve_start(http_options=config.http_options.model_dump(), proxy_location=config.proxy_location)
    client.deploy_apps(config)
    wanted = {application.name for application in config.applications}

    def is_running() -> bool:
        applications = serve.status().applications
        states = {name: str(applications[name].status.value) for name in wanted if name in applications}
        if "DEPLOY_FAILED" in states.values():
            raise RuntimeError(f"the deploy failed: {applications}")
        return set(states) == wanted and set(states.values()) == {"RUNNING"}

    try:
        wait_until(is_running, timeout_s, "RUNNING")
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {serve.status().applications}") from None


def wait_for_http(url: str, path: str = "/health", timeout_s: float = 60) -> None:
    """Waits until the proxy has learned of the application, which it does a moment after it runs."""
    wait_until(lambda: answers(url, path), timeout_s, f"answering at {url}{path}")


def answers(url: str, path: str) -> bool:
    """Whether a GET request succeeds."""
    try:
        return httpx.get(f"{url}{path}", timeout=10).is_success
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str, pause_s: float = 0.2) -> None:
    """Returns once a condition holds, which is looked at every `pause_s`.

    Raises:
        TimeoutError: it did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not {what} within {timeout_s:g} s")
        time.sleep(pause_s)


def shut_down() -> None:
    """Ends Serve, and this process's part in the Ray cluster."""
    import ray
    from ray import serve

    # Ray reports the end of Serve's controller as if it were a fault.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
