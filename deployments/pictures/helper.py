"""The program of a helper process: runs the functions that it is sent, until its connection ends."""

import pickle
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from deployments.errors import InvalidImage, ServiceError

ALARM_AFTER_S = 5
"""How much later than its caller a helper ends a function: only where the caller is gone."""


def serve(descriptor: int, memory_bytes: int) -> None:
    """Runs functions one after the other.

    Args:
        descriptor: of the socket that they come by.
        memory_bytes: the limit of the memory that this process may hold.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # A crash is foreseen; its memory is of no use to anybody.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The terminal's interrupt is for the service, which ends this process by closing the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    while True:
        try:
            function, args, timeout_s = receive(connection)
        except (EOFError, ConnectionError):
            return
        # Its default action ends the process also within native code.
        signal.alarm(int(timeout_s) + ALARM_AFTER_S)
        send(connection, _outcome(function, args))
        signal.alarm(0)


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether the function raised, and what it raised or returned."""
    try:
        return False, function(*args)
    except (ServiceError, MemoryError) as error:
        return True, error
    except Exception as error:
        # Whatever a decoder raises is about the file; the exceptions of some libraries cannot be pickled.
        return True, InvalidImage(f"image: is damaged or truncated: {type(error).__name__}: {error}")


def send(connection: Connection, value: Any) -> None:
    """Sends a value; its arrays and buffers go from memory to the socket without being copied."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    connection.send_bytes(pickle.dumps((text, [part.nbytes for part in raw])))
    for part in raw:
        if part.nbytes:
            connection.send_bytes(part)


def receive(connection: Connection) -> Any:
    """Returns the value that `send` sent.

    Raises:
        EOFError, OSError: the other process is gone.
    """
    text, lengths = pickle.loads(connection.recv_bytes())
    buffers = [np.empty(length, np.uint8) for length in lengths]
    for buffer in buffers:
        if buffer.nbytes:
            connection.recv_bytes_into(buffer)
    return pickle.loads(text, buffers=buffers)
