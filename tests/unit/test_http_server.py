"""The HTTP server that Serve runs, on a real socket: Java's Upgrade header, and HTTP/1.0."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.importer import import_from_string

from deployments.environment import prepare_environment
from deployments.parsing.http.http_server import MendedHttpProtocol, use_mended_server

# As Java's HttpClient sends it.
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAQBAAAAAAUAAEAA\r\n"
BODY = bytes(range(256)) * 3000


async def digest(request: Request) -> Response:
    return JSONResponse(hashlib.sha256(await request.body()).hexdigest())


async def stream(_: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"one ", b"", b"two ", b"three"):
            yield part

    return StreamingResponse(parts())


@asynccontextmanager
async def server() -> AsyncIterator[int]:
    """The port of a running server."""
    app = Starlette(routes=[Route("/digest", digest, methods=["POST", "GET"]), Route("/stream", stream)])
    config = uvicorn.Config(app, port=0, http=MendedHttpProtocol, lifespan="off", log_config=None, access_log=False)
    one = uvicorn.Server(config)
    one.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(one._serve())
    while not one.started:
        await asyncio.sleep(0.01)
    try:
        yield one.servers[0].sockets[0].getsockname()[1]
    finally:
        one.should_exit = True
        await task


async def exchange(port: int, request: bytes, size: int = 10**6) -> bytes:
    """All that the server sends to a request, which is written in pieces, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for start in range(0, len(request), size):
        writer.write(request[start : start + size])
        await writer.drain()
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


def post(body: bytes, headers: str = "", version: str = "1.1") -> bytes:
    return f"POST /digest HTTP/{version}\r\nHost: s\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


CLOSING = b"GET /digest HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"
EXPECTED, OF_NOTHING = (hashlib.sha256(body).hexdigest().encode() for body in (BODY, b""))


@pytest.mark.parametrize("size", [100, 5000, 10**6])
async def test_a_body_beside_an_upgrade_to_http2_is_kept_and_the_connection_too(size: int) -> None:
    async with server() as port:
        body = BODY[:20_000] if size == 100 else BODY
        answer = await exchange(port, post(body, H2C) + post(b"next") + CLOSING, size)
    expected = [hashlib.sha256(one).hexdigest().encode() for one in (body, b"next", b"")]
    assert [one for one in answer.split(b'"') if len(one) == 64] == expected
    assert b"101" not in answer.split(b"\r\n")[0]


async def test_a_chunked_body_beside_an_upgrade_is_kept() -> None:
    head = f"POST /digest HTTP/1.1\r\nHost: s\r\n{H2C}Transfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:1000], BODY[1000:])) + b"0\r\n\r\n"
    async with server() as port:
        answer = await exchange(port, head + chunks + CLOSING, 3000)
    assert EXPECTED in answer
    assert OF_NOTHING in answer


async def test_an_upgrade_without_a_body_is_answered_as_if_it_were_not_there() -> None:
    async with server() as port:
        answer = await exchange(port, f"GET /digest HTTP/1.1\r\nHost: s\r\n{H2C}\r\n".encode() + CLOSING)
    assert answer.count(OF_NOTHING) == 2


async def test_very_many_upgrades_at_once_are_answered_one_after_the_other() -> None:
    many = b"GET /digest HTTP/1.1\r\nHost: s\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" * 900
    async with server() as port:
        answer = await exchange(port, many + CLOSING)
    assert answer.count(OF_NOTHING) == 901


async def test_nonsense_is_still_refused() -> None:
    async with server() as port:
        assert (await exchange(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection() -> None:
    async with server() as port:
        head, _, body = (await exchange(port, b"GET /stream HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
        newer = await exchange(port, b"GET /stream HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
    assert body == b"one two three"
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert b"transfer-encoding: chunked" in newer
    assert newer.endswith(b"5\r\nthree\r\n0\r\n\r\n")


async def test_http_1_0_gets_the_length_where_there_is_one() -> None:
    async with server() as port:
        answer = await exchange(port, post(BODY, version="1.0"))
    assert b"content-length: 66\r\n" in answer
    assert EXPECTED in answer


def test_serve_is_told_to_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    prepare_environment()
    named = os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert named == f"{use_mended_server.__module__}.{use_mended_server.__name__}"
    assert use_mended_server() == []
    assert import_from_string(HTTP_PROTOCOLS["auto"]) is MendedHttpProtocol
