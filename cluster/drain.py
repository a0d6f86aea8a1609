"""Runs before a worker pod ends: asks Ray to move the pod's replicas elsewhere, and waits until they are gone.

Kubernetes ends a pod by killing Ray, and with it the answers that the pod's replicas are sending, and those that the
pod's HAProxy passes on from replicas elsewhere. If Serve is told beforehand, it first starts other replicas, sends no
more requests here, lets those under way finish, and ends HAProxy last.
"""

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

DEADLINE_S = 600
"""Enough for a GPU node to come and load a model, and for answers to finish; the pod's grace period is longer."""

HEAD_GONE_S = 120
"""A head that restarts is back within this time. If not, the cluster is being deleted and nothing ends the replicas."""


def arguments_of_raylet() -> dict[str, str]:
    """Returns the arguments of this pod's raylet; empty if it does not run."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet":
            pairs = (argument.partition("=") for argument in process.info["cmdline"] or ())
            return {name: value for name, _, value in pairs}
    return {}


def at_work() -> int:
    """Returns how many processes of this pod may be serving a request: replicas, and HAProxy."""
    processes = (process.info for process in psutil.process_iter(["name", "cmdline"]))
    return sum(
        1
        for info in processes
        if (info["cmdline"] or [""])[0].startswith("ray::ServeReplica") or "haproxy" in (info["name"] or "")
    )


def head_answers(address: str) -> bool:
    """Returns whether the head listens at its `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def drain(deadline_s: float = DEADLINE_S, poll_s: float = 1.0, head_gone_s: float = HEAD_GONE_S) -> int:
    """Drains this node; returns the exit code: 1 if Ray refuses, or if replicas or HAProxy still run at the end."""
    raylet = arguments_of_raylet()
    if not raylet or not at_work():
        return 0
    command = [
        *(str(Path(sys.executable).with_name("ray")), "drain-node", "--address", raylet["--gcs-address"]),
        *("--node-id", raylet["--node_id"], "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", "the pod is ending", "--deadline-remaining-seconds", str(int(deadline_s))),
    ]
    end = time.monotonic() + deadline_s
    try:
        subprocess.run(command, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        # For example while the whole cluster is being deleted and its head is already gone.
        sys.stderr.write(f"cannot drain: {error}\n")
        return 1
    seen = time.monotonic()
    while at_work() and time.monotonic() < end:
        if head_answers(raylet["--gcs-address"]):
            seen = time.monotonic()
        elif time.monotonic() - seen >= head_gone_s:
            break
        time.sleep(poll_s)
    return int(at_work() > 0)


if __name__ == "__main__":
    sys.exit(drain())
