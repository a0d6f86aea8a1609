"""The HTTP server that Serve runs, on a real socket: Java's Upgrade header, HTTP/1.0, bodies that nobody reads."""

import asyncio
import hashlib
import os
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.importer import import_from_string

from deployments.environment import prepare_environment
from deployments.parsing.http import http_server
from deployments.parsing.http.body_pacing import BodyPaceMiddleware, PacedMessageQueue, PacedReceiveProxy
from deployments.parsing.http.http_server import (
    MendedHttpProtocol,
    PacedHttpProtocol,
    use_mended_server,
    use_paced_server,
)

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


ROUTES = Starlette(routes=[Route("/digest", digest, methods=["POST", "GET"]), Route("/stream", stream)])


@asynccontextmanager
async def server(app: ASGIApp = ROUTES, protocol: type[MendedHttpProtocol] = MendedHttpProtocol) -> AsyncIterator[int]:
    """The port of a running server."""
    config = uvicorn.Config(app, port=0, http=protocol, lifespan="off", log_config=None, access_log=False)
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


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without reading the body, once some of it has come."""
    await receive()
    await Response("too large", 413)(scope, receive, send)


async def flood(writer: asyncio.StreamWriter, seconds: float) -> int:
    """Sends chunks for as long as they are taken; returns how many bytes were."""
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    sent = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                writer.write(chunk)
                await writer.drain()
                sent += 0x10000
    except (TimeoutError, ConnectionError):
        return sent


CHUNKED = b"POST /digest HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_an_answer_before_the_whole_body_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LINGER_S", 0.3)
    async with server(refuse) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED)
        flooding = asyncio.create_task(flood(writer, 10))
        # The client is told, while it goes on sending, ...
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close\r\n" in answer
        # With a length, HAProxy would not end its client's connection.
        assert b"content-length" not in answer
        assert b"transfer-encoding" not in answer
        assert answer.endswith(b"too large")
        assert not flooding.done()
        # ... and cut off if it does not stop.
        assert await asyncio.wait_for(flooding, 5) > 0


async def test_a_request_after_one_that_was_refused_with_its_whole_body_is_answered() -> None:
    async with server(refuse) as port:
        answer = await exchange(port, post(b"1") + post(b"2") + CLOSING)
    assert answer.count(b"HTTP/1.1 413 ") == 3


class Serve:
    """Takes bodies from the server as Serve does behind HAProxy: as fast as they come, into a queue without a bound."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.most_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        proxy = ASGIDIReceiveProxy(scope, receive, asyncio.get_running_loop())
        fetching = proxy.fetch_until_disconnect_task()
        answering = asyncio.ensure_future(self._app(scope, proxy, send))
        while not answering.done() and not fetching.done():
            queued = list(proxy.queue._queue)  # type: ignore[attr-defined]
            self.most_bytes = max(self.most_bytes, sum(len(message.get("body", b"")) for message in queued))
            await asyncio.sleep(0.001)
        self.client_left = fetching.done()
        answering.cancel() if self.client_left else fetching.cancel()


async def test_a_body_is_read_no_faster_than_the_application_takes_it() -> None:
    go_on = asyncio.Event()

    async def wait_and_digest(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await ROUTES(scope, receive, send)

    serve = Serve(BodyPaceMiddleware(wait_and_digest))
    async with server(serve, PacedHttpProtocol) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED)
        sent = await flood(writer, 1)
        # What the system's buffers take; a server that takes all gets hundreds of MB in that time.
        assert sent < 30 * 2**20
        assert serve.most_bytes < 2**20
        go_on.set()
        writer.write(b"0\r\n\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b'"'), 20)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert serve.most_bytes < 2**20
        writer.close()


async def test_serves_own_proxy_and_its_replica_hold_no_more_than_the_application_takes() -> None:
    """The classes that replace Serve's, joined as Serve joins them: by calls that fetch what the proxy has queued."""
    queue, received = PacedMessageQueue(), 0

    async def receive_all() -> None:
        nonlocal received
        for _ in range(1000):
            await queue({"type": "http.request", "body": bytes(2**16), "more_body": True})
            received += 2**16
        await queue({"type": "http.disconnect"})

    async def fetch(_: object) -> bytes:
        await queue.wait_for_message()  # type: ignore[no-untyped-call]
        return pickle.dumps(queue.get_messages_nowait())

    proxy = PacedReceiveProxy({"type": "http"}, None, fetch)
    receiving, fetching = asyncio.create_task(receive_all()), asyncio.create_task(proxy.fetch_until_disconnect())  # type: ignore[no-untyped-call]
    taken = 0
    for _ in range(20):
        for _ in range(10):
            await asyncio.sleep(0)
        assert received - taken <= 2**20
        taken += len((await proxy())["body"])
    while (message := await proxy())["type"] == "http.request":
        taken += len(message["body"])
    assert taken == received == 1000 * 2**16
    assert (await proxy())["type"] == "http.disconnect"
    await receiving
    await fetching


async def test_a_client_that_leaves_is_noticed() -> None:
    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(60)

    serve = Serve(BodyPaceMiddleware(wait))
    async with server(serve, PacedHttpProtocol) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(b"all of it"))
        await asyncio.sleep(0.2)
        writer.close()
        async with asyncio.timeout(5):
            while not getattr(serve, "client_left", False):
                await asyncio.sleep(0.01)


async def test_requests_on_one_connection_have_a_pace_each() -> None:
    async with server(Serve(BodyPaceMiddleware(ROUTES)), PacedHttpProtocol) as port:
        answer = await exchange(port, post(BODY) * 3 + CLOSING, 50_000)
    assert answer.count(EXPECTED) == 3
    assert answer.count(OF_NOTHING) == 1


def test_a_parsers_own_server_keeps_the_pace_also_where_serve_asks_for_the_mended_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    use_paced_server()
    use_mended_server()
    assert import_from_string(HTTP_PROTOCOLS["auto"]) is PacedHttpProtocol


def test_serve_is_told_to_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    prepare_environment()
    named = os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert named == f"{use_mended_server.__module__}.{use_mended_server.__name__}"
    assert use_mended_server() == []
    assert import_from_string(HTTP_PROTOCOLS["auto"]) is MendedHttpProtocol
