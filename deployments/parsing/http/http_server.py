"""uvicorn's HTTP server with what this service needs besides.

The body beside an `Upgrade` header is kept; HTTP/1.0 gets no chunks; a connection ends with an answer that comes before
the whole body; and in a parser, a body is read no faster than the application takes it.
"""

import asyncio
from typing import Any

import httptools
from starlette.types import Message
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deployments.parsing.http.body_pacing import EXTENSION, BodyPace, pace_serves_proxy, paced

FRAMING = (b"content-length", b"transfer-encoding")
"""The headers that say where a body ends."""

LINGER_S = 2.0
"""How long a client whose request was answered early may go on sending.

What it sends is dropped. If the socket were closed at once, with unread data in it, TCP would reset the connection, and
the client might lose the answer.
"""


class MendedHttpProtocol(HttpToolsProtocol):
    """Serves one connection.

    Clients that ask for HTTP/2 by `Upgrade: h2c`, as Java's HttpClient does, send their body at once and go on with
    HTTP/1.1 if the server does not switch (RFC 9110, 7.8). httptools takes what follows such a header for another
    protocol, and uvicorn drops it. Here a second parser reads it as the body.
    """

    _keeps_pace = False
    """Whether the application tells which pieces of the body it has taken, as BodyPaceMiddleware does."""

    _reads_rest = False
    """Whether the parser reads a head that was made up, in front of the body that follows an Upgrade."""

    _lingers = False
    """Whether all is answered, and what still comes is dropped."""

    _paces: tuple[BodyPace, ...] = ()
    """Of requests that are not answered; there are several if the client does not wait for answers."""

    def data_received(self, data: bytes) -> None:
        """Parses what the client sent."""
        if self._lingers:
            return
        self._unset_keepalive_if_required()
        # A loop, since a client may send a thousand such requests at once.
        while data:
            data = self._parse(data)

    def _parse(self, data: bytes) -> bytes:
        """Parses as far as an Upgrade that is not followed; returns what is to be parsed after it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as upgrade:
            if not self._should_upgrade():
                return self._without_upgrade(data[upgrade.args[0] :])
            self.handle_websocket_upgrade()
        return b""

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Sets up a parser for what follows a head with an Upgrade; returns it behind a head without."""
        framing = [name + b": " + value for name, value in self.headers if name in FRAMING]
        self._reads_rest = True
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([b"POST / HTTP/1.1", *framing, b"", rest])

    def on_message_begin(self) -> None:
        """Begins a request."""
        if not self._reads_rest:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Takes some of the request's target."""
        if not self._reads_rest:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header."""
        if not self._reads_rest:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Starts the application, whose answer to HTTP/1.0 ends with the connection if it announces no length."""
        if self._reads_rest:
            return
        earlier = self.cycle
        super().on_headers_complete()
        cycle = self.cycle
        if cycle is earlier:
            # A WebSocket's.
            return
        if self.parser.get_http_version() == "1.0":
            cycle.send = _without_chunks(cycle, cycle.send)  # type: ignore[method-assign]
        pace = BodyPace()
        cycle.send = self._without_rest(cycle, pace)  # type: ignore[method-assign]
        if self._keeps_pace:
            self._paces = (*(one for one in self._paces if not one.has_ended), pace)
            cycle.scope.setdefault("extensions", {})[EXTENSION] = pace  # type: ignore[assignment]
            cycle.receive = paced(cycle.receive, pace)  # type: ignore[method-assign]

    def on_message_complete(self) -> None:
        """Ends the request, unless its body is still to come."""
        if not self._reads_rest and self.parser.should_upgrade():
            return
        self._reads_rest = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the request, if one is under way."""
        super().connection_lost(exc)
        for pace in self._paces:
            pace.end()

    def _without_rest(self, cycle: RequestResponseCycle, pace: BodyPace) -> Any:
        """Returns a `send` that closes the connection after an answer that comes before the whole body has."""
        send: Any = cycle.send

        async def send_without_rest(message: Message) -> None:
            nonlocal send
            if message["type"] == "http.response.start" and cycle.more_body:
                # uvicorn then adds `Connection: close`.
                cycle.keep_alive = False
                # Without a length, the answer ends with the connection. HAProxy then ends the client's as well; else it
                # would take all that the client still sends.
                headers = [(name, value) for name, value in message.get("headers", []) if name.lower() not in FRAMING]
                message = {**message, "headers": headers}
                send = _without_chunks(cycle, send)
            elif not message.get("more_body", False) and cycle.more_body and not cycle.keep_alive:
                # Or uvicorn would close the socket at once.
                cycle.keep_alive = True
                await send(message)
                pace.end()
                self._linger()
                return
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                pace.end()

        return send_without_rest

    def _linger(self) -> None:
        self._lingers = True
        self._unset_keepalive_if_required()
        if not self.transport.is_closing():
            if self.transport.can_write_eof():
                self.transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self.transport.close)


class PacedHttpProtocol(MendedHttpProtocol):
    """Serves one connection of a parser's own server, whose application has BodyPaceMiddleware."""

    _keeps_pace = True


def _without_chunks(cycle: RequestResponseCycle, send: Any) -> Any:
    is_open_ended = False

    async def send_without_chunks(message: Message) -> None:
        nonlocal is_open_ended
        if message["type"] == "http.response.start":
            is_open_ended = all(name.lower() != b"content-length" for name, _ in message.get("headers", []))
            if is_open_ended:
                # uvicorn then takes the length for known, and adds no header.
                cycle.chunked_encoding = False
        elif is_open_ended:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return send_without_chunks


def use_mended_server() -> list[Any]:
    """Makes this process's later HTTP servers use the mended protocol.

    Ray Serve calls it in each process that has a server, its proxies included, if the environment variable
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it. It adds no middleware, so it returns an empty list.
    """
    pace_serves_proxy()
    if HTTP_PROTOCOLS["auto"] != PACED:
        HTTP_PROTOCOLS["auto"] = MENDED
    return []


def use_paced_server() -> None:
    """Makes this process's later HTTP servers hold back bodies until the application takes them."""
    pace_serves_proxy()
    HTTP_PROTOCOLS["auto"] = PACED


MENDED, PACED = (f"{__name__}:{protocol.__name__}" for protocol in (MendedHttpProtocol, PacedHttpProtocol))
