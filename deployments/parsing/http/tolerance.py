"""ASGI middleware for what clients mean: `/health/` and `//health` are `/health`, and HEAD is GET without a body."""

import re

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class PathMiddleware:
    """Takes paths with doubled slashes, or a slash at the end, for the paths without. A redirect would lose a body.

    `raw_path` stays as the client wrote it.

    Args:
        app: the application inside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] in ("http", "websocket"):
            path = get_route_path(scope)
            usual = re.sub("/{2,}", "/", path).rstrip("/") or "/"
            if usual != path:
                scope = {**scope, "path": scope["path"].removesuffix(path) + usual}
        await self._app(scope, receive, send)


class HeadMiddleware:
    """Answers HEAD with the headers that GET would get.

    Args:
        app: the application inside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_no_body(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
            elif not message.get("more_body", False):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app({**scope, "method": "GET"}, receive, send_no_body)
