"""Holds back clients that send faster than the application reads: Ray Serve would keep everything that arrives."""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

EXTENSION = "segment_anything_2.body_pace"
"""Under this name, a connection's ASGI scope has the BodyPace of its request."""


class BodyPace:
    """Lets one piece of a request's body at a time out of the HTTP server.

    Serve takes pieces from the server as fast as they arrive and queues them without a bound. So the server asks here
    before it gives the next one, and stops reading from the client meanwhile.

    Belongs to the server's event loop; `taken` may be called from any thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self._has_ended = False

    async def turn(self) -> None:
        """Returns once the application has taken the piece before, or needs no more."""
        await self._may_go_on.wait()

    def given(self) -> None:
        """Notes that a piece left the server."""
        if not self._has_ended:
            self._may_go_on.clear()

    def taken(self) -> None:
        """Notes that the application has the piece that left last."""
        self._loop.call_soon_threadsafe(self._may_go_on.set)

    def end(self) -> None:
        """Holds nothing back any more: the request is answered, or its client is gone."""
        self._has_ended = True
        self._may_go_on.set()


class BodyPaceMiddleware:
    """Tells the HTTP server when the application takes a piece of the body.

    Requests that come through Serve's own proxy have no pace: see docs/configuration.md#behind-haproxy.

    Args:
        app: the application inside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        pace: BodyPace | None = scope.get("extensions", {}).get(EXTENSION)

        async def receive_and_tell() -> Message:
            message = await receive()
            if pace is not None and message["type"] == "http.request":
                pace.taken()
            return message

        await self._app(scope, receive if pace is None else receive_and_tell, send)


def paced(receive: Any, pace: BodyPace) -> Any:
    """Returns an ASGI `receive` of a server that keeps the pace."""

    async def receive_in_turn() -> Message:
        await pace.turn()
        message: Message = await receive()
        if message["type"] == "http.request":
            pace.given()
        return message

    return receive_in_turn
