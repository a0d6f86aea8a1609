"""HAProxy as Serve starts it here: the real one, with Serve's own configuration, and no application behind it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.haproxy import SPARE_CONNECTIONS, amended, write_errors
from harness.serve import free_port, wait_until

ROOT = Path(__file__).parents[2]
HEAD_TIMEOUT_S = 1.0
MAXCONN = SPARE_CONNECTIONS + 4


def serves_config(folder: Path, port: int, backends: dict[str, Any]) -> Path:
    """The file that Serve writes when it starts HAProxy."""
    from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig
    from ray.serve.config import HTTPOptions

    path = folder / "haproxy.cfg"
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        metrics_port=free_port(),
        stats_port=free_port(),
        maxconn=MAXCONN,
        timeout_client_s=180,
        http_options=HTTPOptions(host="127.0.0.1", port=port),
    )
    HAProxyApi(config, backends, str(path))._generate_config_file_internal()
    return path


def application(parsers: int) -> Any:
    """An application of which no parser can be reached, nor the proxy that Serve has for the time without them."""
    from ray.serve._private.haproxy import BackendConfig, ServerConfig

    servers = [ServerConfig(f"parser-{index}", "127.0.0.1", free_port()) for index in range(parsers)]
    fallback = ServerConfig("fallback", "127.0.0.1", free_port())
    return BackendConfig(name="app", path_prefix="/", app_name="app", servers=servers, fallback_server=fallback)


@contextmanager
def haproxy(folder: Path, parsers: int | None, head_timeout_s: float = HEAD_TIMEOUT_S) -> Iterator[str]:
    """HAProxy, started as Serve does; gives its address. None: it knows of no application."""
    port = free_port()
    config = serves_config(folder, port, {} if parsers is None else {"app": application(parsers)})
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.haproxy", "-db", "-f", str(config), "-dR"],
        cwd=ROOT,
        # As Serve does it, the second one names the program itself.
        env=os.environ
        | {"REQUEST_HEAD_TIMEOUT_S": str(head_timeout_s), "RAY_SERVE_HAPROXY_BINARY_PATH": sys.executable},
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: is_open(port) or process.poll() is not None, 20, "listening")
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        # Serve knows its proxies by the file's name, and by the process that it started.
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        assert str(config).encode() in command
        assert b"haproxy" in command[0]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of one that knows of no application yet."""
    with haproxy(tmp_path_factory.mktemp("starting"), None) as url:
        yield url


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def ask(url: str) -> bytes:
    """What one request on a connection of its own is answered; it may be refused while it is opened already."""
    with connect(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return answer(connection)


def assert_come_again(found: httpx.Response, word: str) -> None:
    assert (found.status_code, found.headers["retry-after"]) == (503, "2")
    assert word in found.json()["detail"]["msg"]


def test_before_there_is_an_application_the_answer_is_to_come_again(url: str) -> None:
    assert_come_again(httpx.post(f"{url}/segment-anything-2"), "starting")
    # Serve's own answers to its own questions stay.
    assert "starting" not in httpx.get(f"{url}/-/healthz").text


def test_nothing_waits_for_the_first_parser_but_what_comes_later_may_wait_for_another(tmp_path: Path) -> None:
    with haproxy(tmp_path, parsers=0) as url:
        assert_come_again(httpx.get(f"{url}/health", timeout=30), "starting")
    assert "if !{ path_beg /-/ }" in (tmp_path / "haproxy.cfg").read_text()
    with haproxy(tmp_path, parsers=1) as url:
        # It can't be reached: worth another try.
        assert_come_again(httpx.get(f"{url}/health", timeout=30), "again")
    with haproxy(tmp_path, parsers=0):
        assert "if !{ path_beg /-/ }" not in (tmp_path / "haproxy.cfg").read_text()
    with haproxy(tmp_path, parsers=None) as url:
        # One that has taken the place of another that died.
        assert_come_again(httpx.get(f"{url}/health", timeout=30), "starting")


@pytest.mark.parametrize(("count", "status"), [(150, 503), (300, 400)])
def test_some_hundred_headers_are_taken(url: str, count: int, status: int) -> None:
    assert httpx.get(url, headers={f"x-header-{i}": "1" for i in range(count)}).status_code == status


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nHost: a\r\nX-Slow"], ids=["silent", "half"])
def test_a_connection_that_does_not_say_what_it_wants_is_ended(url: str, sent: bytes) -> None:
    started = time.monotonic()
    with connect(url) as connection:
        connection.sendall(sent)
        assert answer(connection).startswith(b"HTTP/1.1 408 ")
    assert HEAD_TIMEOUT_S / 2 < time.monotonic() - started < 5 * HEAD_TIMEOUT_S


def is_refused(url: str) -> bool:
    try:
        ask(url)
    except ConnectionError:
        return True
    return False


def test_connections_beyond_the_limit_are_refused_at_once(tmp_path: Path) -> None:
    with haproxy(tmp_path, None, head_timeout_s=60) as url:
        open_ones = []
        for _ in range(2 * (MAXCONN - SPARE_CONNECTIONS)):
            # Some are refused while they are opened.
            with suppress(ConnectionError):
                open_ones.append(connect(url))
        # Once those before are counted.
        wait_until(lambda: is_refused(url), 30, "refused")
        for one in open_ones:
            one.close()
        wait_until(lambda: not is_refused(url), 30, "free again")


def test_what_is_unknown_stays_as_it_is(tmp_path: Path) -> None:
    unknown = "global\n    something new\nbackend b\n    server s 127.0.0.1:1\n"
    assert (
        amended(unknown, write_errors(tmp_path), 20, is_starting=True).replace("    tune.http.maxhdr 256\n", "")
        == unknown
    )


def test_the_program_is_installed_with_the_project() -> None:
    program = Path(sys.executable).parent / "segment-anything-2-haproxy"
    assert os.access(program, os.X_OK)
