"""What tests run in helper processes; imports no more than a helper has already, so that one is ready at once."""

import ctypes
import os
import resource
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def modules() -> list[str]:
    """What is imported once all readers are."""
    import_module("deployments.pictures.reader")
    return sorted(sys.modules)


def process_id() -> int:
    return os.getpid()


def crash(how: str) -> None:
    """Ends the process as faults of native code do."""
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "null pointer":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    os._exit(0)


def wait(seconds: float) -> None:
    time.sleep(seconds)


def answer_when_told(folder: Path) -> str:
    """Makes the file `begun`, and answers once there is a file `go`."""
    (folder / "begun").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return "done"


def hold(count: int) -> int:
    """Takes so many bytes."""
    return int(np.ones(count, np.uint8)[::4096].sum())


def most_memory() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def fail(error: BaseException) -> None:
    raise error


def strange() -> None:
    """Raises what cannot be pickled."""

    class LocalError(Exception):
        """Has no name that another process could import."""

    raise LocalError("of a library")


def echo(*values: Any) -> tuple[Any, ...]:
    return values
