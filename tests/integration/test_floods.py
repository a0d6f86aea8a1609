"""Bodies that have no end: they fill nothing, their connections are ended, and others are served meanwhile."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.integration.conftest import Service
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


@pytest.mark.timeout(120)
@pytest.mark.parametrize("proxy", ["HAProxy", "Serve's own"])
@pytest.mark.parametrize("part", [b'image"; filename="a.png"', b'mask_input"'], ids=["file", "text"])
def test_bodies_without_an_end_fill_nothing_and_are_ended(service: Service, proxy: str, part: bytes) -> None:
    url = service.url if proxy == "HAProxy" else service.fallback_url
    with Memory() as memory, ThreadPoolExecutor(5) as pool:
        floods = [pool.submit(flood, url, part) for _ in range(4)]
        with service.client() as client:
            while not all(one.done() for one in floods):
                assert client.get("/health").status_code == 200
    for one in (future.result() for future in floods):
        assert one.answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close\r\n" in one.answer
        assert one.ended_after_s < 5
        # Of what it sends in the seconds before the end of the connection, nothing is kept.
        assert one.sent < MOST_BYTES
    # Four texts of 32 MB are four times what may be held while they arrive; then each is parsed.
    assert memory.growth < 200 * MB


@pytest.mark.timeout(120)
def test_a_refused_upload_costs_its_client_no_answer(service: Service) -> None:
    """The clients' libraries are still sending when they are told."""
    too_large = bytes(60 * MB)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(too_large), CHUNK):
            yield too_large[start : start + CHUNK]

    with service.client() as client:
        for content in (too_large, pieces()):
            headers = {"Content-Type": "multipart/form-data; boundary=b0undary"}
            answer = client.post("/segment-anything-2", content=content, headers=headers)
            assert answer.status_code == 413
            assert answer.json()["detail"]["msg"].startswith("body: has")
