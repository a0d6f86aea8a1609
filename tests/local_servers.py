"""Runs the standard library's HTTP servers inside a test's own process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer

POLL_S = 0.01
"""How often a server looks whether it is to end: every half second by itself, so long each test would wait."""


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Lets a server answer in a thread; closes it at the end."""
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
