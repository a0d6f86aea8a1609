"""The launcher, `python -m deployments`: starts the service and shows its progress; `prefetch` fills the hub cache.

`serve run CONFIG` takes no port and waits forever after a failed deploy; the launcher says why and exits with 1.
"""

import argparse
import contextlib
import io
import logging
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from deployments.cluster_token import ClusterRefusal, check_cluster
from deployments.config_file import default_path, read_config
from deployments.environment import prepare_environment, ray_address, request_head_timeout_s
from deployments.errors import ModelLoadError
from deployments.machine import usable_cores
from deployments.model_status import read_statuses
from deployments.settings import (
    APP_NAME,
    HUB_MODEL_IDS,
)

POLL_S = 0.5
HTTP_WAIT_S = 20.0
DRAIN_S = 60.0
"""Requests under way have this long to finish when the service is stopped; a second signal ends the launcher."""

HANDLE_TRIES = 4


class LaunchError(Exception):
    """The service cannot start; the message says why."""


class Stopped(Exception):
    """SIGINT or SIGTERM arrived."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, or 1 with a line on standard error that says why."""
    options = _options(argv)
    try:
        if options.command == "prefetch":
            return _prefetch(options.model_ids)
        return _serve(options.config, options.port, options.host)
    except LaunchError as error:
        return _fail(str(error))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deployments", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("serve", help="start the service and wait (the default)")
    fetch = commands.add_parser("prefetch", help="download models into the Hugging Face cache")
    fetch.add_argument("model_ids", nargs="*", help="default: all eight facebook/sam2… models")
    for target in (parser, run):
        target.add_argument(
            "--config", type=Path, help="default: serve_config.yaml with a GPU, else cluster/local.yaml"
        )
        target.add_argument("--port", type=int, help="HTTP port instead of the config file's")
        target.add_argument("--host", help="HTTP address instead of the config file's")
    return parser.parse_args(argv)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


def _say(message: str) -> None:
    print(message, flush=True)


# ---- prefetch


def _prefetch(model_ids: list[str]) -> int:
    # This imports torch, which takes seconds, and which only the replicas need for serving.
    from deployments.model.checkpoints import prefetch

    failed = 0
    for model_id in model_ids or HUB_MODEL_IDS:
        try:
            _say(f"{model_id}: {prefetch(model_id, _Percent(model_id))}")
        except ModelLoadError as error:
            failed = _fail(error.message)
    return failed


class _Percent:
    """Prints a download's progress, every ten percent."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._tenths = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        tenths = 10 * done // total if total else 0
        if tenths > self._tenths:
            _say(f"{self._model_id}: {what}, {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")
        self._tenths = tenths


# ---- serve


def _serve(config_path: Path | None, port: int | None, host: str | None) -> int:
    try:
        config = read_config(config_path or default_path(), port, host)
        # HAProxy would not start, and Serve's report of that is long.
        request_head_timeout_s()
    except ValueError as error:
        raise LaunchError(str(error)) from error
    _say(
        f"config {config.path}: default model {config.settings.default_model_id}, {len(config.settings.models)} models"
    )
    address = config.address
    prepare_environment()
    joins = ray_address() is not None
    with contextlib.suppress(Stopped):
        _catch_stop_signals()
        if not joins:
            _check_port(*address)
        _start_ray()
        # ray.init replaced the handlers by one that aborts the process three seconds after a SIGTERM.
        _catch_stop_signals()
        try:
            try:
                _deploy(config.schema)
                _wait_for_http(*address, route_prefix=config.route_prefix)
            except (RayError, RuntimeError, ConnectionError) as error:
                raise LaunchError(f"the deploy failed: {error}") from error
            _say(f"ready: http://{address[0]}:{address[1]}/segment-anything-2 (Ctrl-C stops)")
            _watch()
        finally:
            _stop(joins)
    _say("stopped")
    return 0


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}; choose another PORT") from error


def _catch_stop_signals() -> None:
    """Makes the next SIGINT or SIGTERM raise Stopped; later signals are ignored."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise Stopped

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _start_ray() -> None:
    address = ray_address()
    _say(f"joining the Ray cluster at {address}" if address else "starting Ray on this machine")
    try:
        if address:
            check_cluster(address)
        ray.init(
            address=address or "local",
            # Ray's own count knows neither affinities nor the quotas of cgroups further up, and makes 0 of half a core.
            num_cpus=None if address else usable_cores(),
            namespace="serve",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ClusterRefusal as error:
        raise LaunchError(str(error)) from error
    except Exception as error:
        # Ray raises a plain one where a busy machine starts its processes too slowly.
        raise LaunchError(f"Ray did not start: {error}") from error


def _deploy(config: ServeDeploySchema) -> None:
    """Deploys the config and waits until the application runs; prints which models are loading meanwhile.

    Raises:
        LaunchError: the deploy failed.
    """
    others = set(serve.status().applications) - {APP_NAME}
    if others:
        raise LaunchError(f"this cluster serves {', '.join(sorted(others))} already; use `serve deploy` there")
    client = serve_start(http_options=config.http_options.model_dump(), proxy_location=config.proxy_location)
    client.deploy_apps(config)
    started, told = time.monotonic(), ""
    while True:
        status = serve.status().applications.get(APP_NAME)
        if status is not None and status.status == ApplicationStatus.RUNNING:
            return
        if status is not None and status.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            raise LaunchError(f"the deploy failed: {_cause(status)}")
        if "failed" in {model.state for model in read_statuses().values()}:
            # Serve would try twice more; the operator at the terminal can fix the cause sooner.
            raise LaunchError(f"the deploy failed: {_failures()}")
        line = _progress_line() or "starting replicas"
        if line != told:
            _say(f"[{time.monotonic() - started:4.0f} s] {line}")
            told = line
        time.sleep(POLL_S)


def _wait_for_http(host: str, port: int, route_prefix: str) -> None:
    """Waits until the proxy routes to the application, a moment after the application is deployed.

    If the proxy does not answer, only a note is printed: the application runs, and clients elsewhere may reach it.
    """
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}{route_prefix}/health"
    # Bypasses any proxy that the environment names for outside connections.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + HTTP_WAIT_S
    while time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=HTTP_WAIT_S):
                return
        except OSError as error:
            cause = error
        time.sleep(0.1)
    _say(f"{url} does not answer: {cause}")


def _progress_line() -> str:
    return "; ".join(str(status) for status in read_statuses().values())


def _cause(status: Any) -> str:
    """Returns why the deploy failed: in the models' own words where they reported a cause, else in Serve's."""
    messages = [f"{name}: {one.message}" for name, one in status.deployments.items() if one.status != "HEALTHY"]
    return _failures() or "; ".join(messages) or str(status.message)


def _failures() -> str:
    return "; ".join(str(model) for model in read_statuses().values() if model.state == "failed")


def _watch() -> None:
    """Waits for a signal; prints each change of the application's status.

    Raises:
        LaunchError: the cluster is gone.
    """
    last = ApplicationStatus.RUNNING
    while True:
        time.sleep(2)
        try:
            application = serve.status().applications.get(APP_NAME)
        except (RayError, ConnectionError) as error:
            raise LaunchError(f"lost the Ray cluster: {error}") from error
        status = application.status if application else ApplicationStatus.NOT_STARTED
        if status != last:
            _say(f"the application is {status.value}: {application.message if application else ''}")
            last = status


def _stop(joined: bool) -> None:
    """Ends everything that the launcher started; on a cluster that it joined, only the application."""
    _say("stopping")
    # From here on, another signal ends the launcher even if the cluster does not answer.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    _drain()
    if joined:
        serve.delete(APP_NAME)
        return
    # Hides Ray's report of the end of Serve's controller, which reads like a fault.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _drain() -> None:
    """Admits no more requests and lets those under way finish; does nothing where there is no application."""
    with contextlib.suppress(RayError, RayServeException, TimeoutError):
        parsers = serve.get_app_handle(APP_NAME)
        for _ in range(HANDLE_TRIES):
            try:
                results = parsers.broadcast("drain", DRAIN_S).results(timeout_s=DRAIN_S + 5, return_exceptions=True)
            except DeploymentUnavailableError:
                # A new handle takes a moment to learn of its replicas.
                time.sleep(POLL_S)
                continue
            if left := sum(result for result in results if isinstance(result, int)):
                _say(f"{left} requests did not finish in time and are aborted")
            return
