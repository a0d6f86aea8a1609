"""What a worker pod does before it ends: asks Ray to move its replicas elsewhere, and waits until they are gone.

Kubernetes ends a pod by killing Ray, and with it the answers that its replicas are sending. Told
beforehand, Serve starts other replicas first, sends no more requests here, and lets those under way finish.
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil

DEADLINE_S = 600
"""Time for a GPU node to come and load a model, and for answers to finish; the pod's grace period is longer."""


def arguments_of_raylet() -> dict[str, str]:
    """The arguments of this pod's raylet; empty if it does not run."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet":
            pairs = (argument.partition("=") for argument in process.info["cmdline"] or ())
            return {name: value for name, _, value in pairs}
    return {}


def replicas() -> int:
    """How many replicas run in this pod."""
    lines = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    return sum(1 for line in lines if line and line[0].startswith("ray::ServeReplica"))


def drain(deadline_s: float = DEADLINE_S, poll_s: float = 1.0) -> int:
    """Empties this node; the exit code is 1 if Ray refuses, or if replicas are left at the deadline."""
    raylet = arguments_of_raylet()
    if not raylet or not replicas():
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
        # Such as while the whole cluster is being deleted, its head first.
        sys.stderr.write(f"cannot drain: {error}\n")
        return 1
    while replicas() and time.monotonic() < end:
        time.sleep(poll_s)
    return int(replicas() > 0)


if __name__ == "__main__":
    sys.exit(drain())
