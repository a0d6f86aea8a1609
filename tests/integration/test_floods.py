"""Bodies that have no end, too many large ones, and connections that say nothing: nothing fills, others are served."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.integration.conftest import DEMO, Service
from tests.integration.test_streaming import MB, Memory

HEAD = (
    b"POST /segment-anything-2 HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: multipart/form-data; boundary=b0undary\r\n\r\n"
)
CHUNK = 2**16
MOST_BYTES = 400 * MB


@dataclass
class Flood:
    """What became of a body without an end.

    Attributes:
        sent: bytes that the service took.
        answer: all that came back, until the service ended the connection.
        ended_after_s: how long after the first byte of the answer that was.
    """

    sent: int
    answer: bytes
    ended_after_s: float


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1"
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def flood(url: str, part: bytes) -> Flood:
    """Sends a part that does not end, in chunks, until the service ends the connection."""
    result = Flood(0, b"", 0.0)
    with connected(url) as connection:

        def send() -> None:
            first = b'--b0undary\r\nContent-Disposition: form-data; name="' + part + b"\r\n\r\n"
            piece = b"%x\r\n%b\r\n" % (CHUNK, b"1" * CHUNK)
            try:
                connection.sendall(HEAD + b"%x\r\n%b\r\n" % (len(first), first))
                while result.sent < MOST_BYTES:
                    connection.sendall(piece)
                    result.sent += CHUNK
            except OSError:
                return

        sender = threading.Thread(target=send)
        sender.start()
        try:
            result.answer = connection.recv(MB)
            answered = time.monotonic()
            while more := connection.recv(MB):
                result.answer += more
        except ConnectionResetError:
            pass
        result.ended_after_s = time.monotonic() - answered
        connection.close()
        sender.join()
    return result


def click(service: Service) -> int:
    with service.client() as client:
        return client.get("/health").status_code


@pytest.mark.timeout(120)
@pytest.mark.parametrize("proxy", ["HAProxy", "Serve's own"])
@pytest.mark.parametrize("part", [b'image"; filename="a.png"', b'mask_input"'], ids=["file", "text"])
def test_bodies_without_an_end_fill_nothing(service: Service, proxy: str, part: bytes) -> None:
    url = service.url if proxy == "HAProxy" else service.fallback_url
    with Memory() as memory, ThreadPoolExecutor(4) as pool:
        floods = list(pool.map(lambda _: flood(url, part), range(4)))
    for one in floods:
        print(proxy, part, one.sent / MB, one.answer[:200], one.ended_after_s, memory.growth / MB)
    print(memory.growth / MB)
    assert click(service) == 200
    for one in floods:
        assert one.answer.startswith(b"HTTP/1.1 413 ")
