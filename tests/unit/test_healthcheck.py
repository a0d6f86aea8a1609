"""The container's own health check."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.cluster_files import script
from tests.local_servers import serving


class Answer(BaseHTTPRequestHandler):
    """Answers what the test says."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def health_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/health"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"status": "OK"}', 0),
        (b'{"status": "IDLE"}', 0),
        (b'{"status": "ERROR"}', 1),
        (b"{}", 1),
        (b"Not found", 1),
    ],
)
def test_the_health_check_tells_a_failed_model(
    body: bytes, code: int, health_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answer, "body", body)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert script("healthcheck.py").main(health_url) == code


def test_the_health_check_fails_where_nothing_listens() -> None:
    assert script("healthcheck.py").main("http://127.0.0.1:9/health") == 1
