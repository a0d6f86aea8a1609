"""Holds back clients that send faster than the application reads: Ray Serve would keep everything that arrives."""

import asyncio
from typing import Any

from ray.serve._private import proxy, replica
from ray.serve._private.http_util import ASGIReceiveProxy, MessageQueue
from starlette.types import ASGIApp, Message, Receive, Scope, Send

EXTENSION = "segment_anything_2.body_pace"
"""Under this name, a connection's ASGI scope has the BodyPace of its request."""


WINDOW_BYTES = 128 * 1024
"""How much of a body may lie between the server and the application.

Not less: while the server does not read, it cannot notice that a client has left, and most bodies that wait for a place
in a replica should not stop it.
"""


class BodyPace:
    """Lets a request's body out of the HTTP server as fast as the application takes it.

    Serve takes pieces from the server as fast as they arrive and queues them without a bound. So the server asks here
    before it gives the next one, and stops reading from the client meanwhile.

    Belongs to the server's event loop; `taken` may be called from any thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._untaken = 0
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self.has_ended = False

    async def turn(self) -> None:
        """Returns once the application has taken enough, or needs no more."""
        await self._may_go_on.wait()

    def given(self, message: Message) -> None:
        """Notes that a piece left the server."""
        self._move(_size(message))

    def taken(self, message: Message) -> None:
        """Notes that the application has a piece."""
        self._loop.call_soon_threadsafe(self._move, -_size(message))

    def end(self) -> None:
        """Holds nothing back any more: the request is answered, or its client is gone."""
        self.has_ended = True
        self._may_go_on.set()

    def _move(self, nbytes: int) -> None:
        self._untaken += nbytes
        if self.has_ended or self._untaken <= WINDOW_BYTES:
            self._may_go_on.set()
        else:
            self._may_go_on.clear()


def _size(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")


class BodyPaceMiddleware:
    """Tells the HTTP server when the application takes a piece of the body.

    Requests that come through Serve's own proxy have none in their scope: see `pace_serves_proxy`.

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
                pace.taken(message)
            return message

        await self._app(scope, receive if pace is None else receive_and_tell, send)


def paced(receive: Any, pace: BodyPace) -> Any:
    """Returns an ASGI `receive` of a server that keeps the pace."""

    async def receive_in_turn() -> Message:
        await pace.turn()
        message: Message = await receive()
        if message["type"] == "http.request":
            pace.given(message)
        return message

    return receive_in_turn


class PacedMessageQueue(MessageQueue):
    """What a proxy of Serve has received of a request: it receives no faster than the replica asks for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pace = BodyPace()

    async def __call__(self, message: Message) -> None:
        """Queues a message from the client; if much is queued, waits until the replica has asked for it."""
        await super().__call__(message)
        self._pace.given(message)
        await self._pace.turn()

    def get_messages_nowait(self) -> list[Message]:
        """Returns what is queued, to the replica."""
        messages: list[Message] = super().get_messages_nowait()
        for message in messages:
            self._pace.taken(message)
        return messages


class PacedReceiveProxy(ASGIReceiveProxy):
    """A replica's end of a request through Serve's proxy: it asks for more once the application has what came last.

    Args:
        scope: the request's ASGI scope.
        request_metadata: Serve's.
        receive_asgi_messages: asks the proxy for messages.
    """

    def __init__(self, scope: Scope, request_metadata: Any, receive_asgi_messages: Any) -> None:
        async def receive_in_turn(metadata: Any) -> bytes:
            await self.queue.join()
            messages: bytes = await receive_asgi_messages(metadata)
            return messages

        super().__init__(scope, request_metadata, receive_in_turn)

    async def __call__(self) -> Message:
        """Returns the next message."""
        is_over = self.queue.empty() and self._disconnect_message is not None
        message: Message = await super().__call__()
        if not is_over:
            self.queue.task_done()
        return message


def pace_serves_proxy() -> None:
    """Makes the proxy or the replica in this process hold back bodies as well: Serve itself queues all that comes.

    Serve 2.60 has no setting for it, so this replaces two of its classes, whose work stays what it is.
    """
    proxy.MessageQueue = PacedMessageQueue  # type: ignore[attr-defined]
    replica.ASGIReceiveProxy = PacedReceiveProxy  # type: ignore[attr-defined]
