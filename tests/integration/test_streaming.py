"""Large answers: none of them exists whole anywhere while its client reads, nor while it does not."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import psutil
import pytest

from harness.images import encoded, picture
from tests.integration.conftest import DEMO, Service

MB = 2**20
FIELDS = {"point_coords": "[[2000,1500]]", "point_labels": "[1]", "model_id": DEMO}


class Memory:
    """Samples the memory of all processes of the service, shared memory counted once."""

    def __init__(self) -> None:
        self.idle = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """Bytes at the highest, beyond what there was at the start."""
        return self.peak - self.idle

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        total = 0
        for process in psutil.Process().children(recursive=True):
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return total


def request(image: bytes) -> bytes:
    """A whole HTTP request for the default answer."""
    boundary = "b0undary"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in FIELDS.items()
    ]
    file = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = "".join(parts).encode() + file.encode() + image + f"\r\n--{boundary}--\r\n".encode()
    head = (
        f"POST /segment-anything-2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n"
    )
    return head.encode() + body


@contextmanager
def asked(service: Service, image: bytes) -> Iterator[socket.socket]:
    """A connection on which the first bytes of the answer have come."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        # As small as the kernel lets it be: what waits in sockets waits nowhere in the service.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(request(image))
        assert connection.recv(1024).startswith(b"HTTP/1.1 200")
        yield connection


def read_all(connection: socket.socket) -> int:
    """Reads to the end, keeping nothing but the last bytes, which must be those of a whole answer."""
    total, tail = 0, b""
    while data := connection.recv(MB):
        total += len(data)
        tail = (tail + data)[-64:]
    assert b'"}' in tail
    assert tail.endswith(b"0\r\n\r\n")
    return total


@pytest.fixture(scope="module")
def image(service: Service) -> bytes:
    """12 megapixels, whose embedding is remembered: what the model needs for it is not measured."""
    image = encoded(picture(4000, 3000, seed=12), "JPEG")
    with asked(service, image):
        pass
    return image


@pytest.mark.timeout(240)
def test_a_twelve_megapixel_answer_takes_little_memory_while_its_client_reads(service: Service, image: bytes) -> None:
    with Memory() as memory, asked(service, image) as connection:
        total = read_all(connection)
    assert total > 300 * MB
    assert memory.growth < 256 * MB


@pytest.mark.timeout(240)
def test_clients_that_do_not_read_make_the_service_wait_not_grow(service: Service, image: bytes) -> None:
    with Memory() as memory, asked(service, image) as slow, asked(service, image) as gone:
        # In this time both answers would be written to their ends, 700 MB.
        time.sleep(8)
        gone.close()
        with service.client() as client:
            assert client.get("/health").status_code == 200
        assert read_all(slow) > 300 * MB
    assert memory.growth < 256 * MB
