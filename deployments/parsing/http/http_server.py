"""uvicorn's HTTP server with two mends: the body beside an `Upgrade` header is kept, and HTTP/1.0 gets no chunks."""

from typing import Any

import httptools
from starlette.types import Message
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

FRAMING = (b"content-length", b"transfer-encoding")
"""The headers that say where a body ends."""


class MendedHttpProtocol(HttpToolsProtocol):
    """Serves one connection.

    Clients that ask for HTTP/2 by `Upgrade: h2c`, as Java's HttpClient does, send their body at once and go on with
    HTTP/1.1 if the server does not switch (RFC 9110, 7.8). httptools takes what follows such a header for another
    protocol, and uvicorn drops it. Here a second parser reads it as the body.
    """

    _reads_rest = False
    """Whether the parser reads a head that was made up, in front of the body that follows an Upgrade."""

    def data_received(self, data: bytes) -> None:
        """Parses what the client sent."""
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
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0" and self.cycle is not None:
            self.cycle.send = _without_chunks(self.cycle)  # type: ignore[method-assign]

    def on_message_complete(self) -> None:
        """Ends the request, unless its body is still to come."""
        if not self._reads_rest and self.parser.should_upgrade():
            return
        self._reads_rest = False
        super().on_message_complete()


def _without_chunks(cycle: RequestResponseCycle) -> Any:
    send, is_open_ended = cycle.send, False

    async def send_without_chunks(message: Message) -> None:
        nonlocal is_open_ended
        if message["type"] == "http.response.start":
            is_open_ended = all(name.lower() != b"content-length" for name, _ in message.get("headers", []))
            if is_open_ended:
                # uvicorn then takes the length for known, and adds no header.
                cycle.chunked_encoding = False
        elif is_open_ended:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)  # type: ignore[arg-type]

    return send_without_chunks


def use_mended_server() -> list[Any]:
    """Makes this process's later HTTP servers use the mended protocol.

    Ray Serve calls it in each process that has a server, its proxies included, if the environment variable
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it. It adds no middleware, so it returns an empty list.
    """
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{MendedHttpProtocol.__name__}"
    return []
