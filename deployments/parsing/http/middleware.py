"""ASGI middleware around every HTTP request and every WebSocket: the bearer token, draining, unforeseen errors."""

import hmac
import logging
from collections.abc import Sequence

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose, WebSocketDisconnect

from deployments.errors import ShuttingDown, Unauthorized
from deployments.parsing.http.access_log import AccessLogMiddleware
from deployments.parsing.http.body_pacing import BodyPaceMiddleware
from deployments.parsing.http.docs_routes import PATHS as DOCS_PATHS
from deployments.parsing.http.draining import InFlightRequests
from deployments.parsing.http.error_responses import error_response, service_error_response
from deployments.parsing.http.tolerance import HeadMiddleware, PathMiddleware
from deployments.telemetry.metrics import RequestMetrics

PUBLIC_PATHS = {"/", "/openapi.json", "/health", "/ready", *DOCS_PATHS}
PUBLIC_PREFIX = "/page/"
"""The click page's files. The page itself, at `/`, asks its user for the token."""

EXPOSED_HEADERS = [
    "X-Image-Id",
    "X-Video-Id",
    "X-Image-Window",
    "X-Mask-Index",
    "X-Score",
    "X-Request-Id",
    "Server-Timing",
    "Retry-After",
]
"""Headers of answers that pages of other origins may read."""

CONNECTIONS = ("http", "websocket")
"""The ASGI scopes of a client's connection; the other scope, `lifespan`, is the server's own."""

# Close codes for WebSockets that cannot be answered with a status (RFC 6455, section 7.4.1, and IANA's list).
POLICY_VIOLATION, INTERNAL_ERROR, SERVICE_RESTART = 1008, 1011, 1012

logger = logging.getLogger("ray.serve")


def outer_layers(
    token: str | None, cors_origins: Sequence[str], metrics: RequestMetrics, in_flight: InFlightRequests
) -> list[Middleware]:
    """Returns the middleware of the application, the outermost first.

    Args:
        token: see AuthMiddleware.
        cors_origins: the origins whose pages may use the service from a browser; `*` for all.
        metrics: counts the requests.
        in_flight: says whether new requests are admitted.
    """
    tolerance = [Middleware(BodyPaceMiddleware), Middleware(PathMiddleware), Middleware(HeadMiddleware)]
    layers = [
        Middleware(AccessLogMiddleware, metrics=metrics, in_flight=in_flight),
        Middleware(ErrorMiddleware),
        Middleware(DrainMiddleware, in_flight=in_flight),
        Middleware(AuthMiddleware, token=token),
    ]
    if not cors_origins:
        return [*tolerance, *layers]
    # CORS is outside of all that may reject: a browser asks for permission before it sends the token, and must be able
    # to read a rejection.
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    return [*tolerance, cors, *layers]


class ErrorMiddleware:
    """Turns a bug into a 500, or closes the WebSocket: the client gets an answer, and the log gets the cause.

    Serve's own middleware gives every request its id and every answer its `X-Request-Id`.

    Args:
        app: the application inside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] not in CONNECTIONS:
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")[:128]
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except (ClientDisconnect, WebSocketDisconnect):
            logger.info("request %r: the client went away, or stopped reading", request_id)
        # The last resort: the replica survives every error.
        except Exception:
            logger.exception("request %r failed", request_id)
            if started:
                if scope["type"] == "websocket":
                    await WebSocketClose(INTERNAL_ERROR)(scope, receive, send)
                # Raised again for the access log, and for the server, which breaks the connection.
                raise
            response = error_response(500, "internal error; the log has it under this answer's X-Request-Id")
            await reject(response, INTERNAL_ERROR, scope, receive, note_start)


class DrainMiddleware:
    """Rejects new requests while the service is being stopped.

    Args:
        app: the application inside.
        in_flight: says whether new requests are admitted.
    """

    def __init__(self, app: ASGIApp, in_flight: InFlightRequests) -> None:
        self._app = app
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] in CONNECTIONS and self._in_flight.is_closed:
            error = ShuttingDown("the service is shutting down; send the request again")
            response = service_error_response(HTTPConnection(scope), error, {"Connection": "close"})
            await reject(response, SERVICE_RESTART, scope, receive, send)
            return
        await self._app(scope, receive, send)


class AuthMiddleware:
    """Rejects requests without the bearer token.

    Args:
        app: the application inside.
        token: the token that `Authorization: Bearer` must carry, except on public paths; None admits every request.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] not in CONNECTIONS or self._is_authorized(scope):
            await self._app(scope, receive, send)
            return
        error = Unauthorized("Authorization: the bearer token is missing or wrong")
        response = service_error_response(HTTPConnection(scope), error, {"WWW-Authenticate": "Bearer"})
        await reject(response, POLICY_VIOLATION, scope, receive, send)

    def _is_authorized(self, scope: Scope) -> bool:
        path = get_route_path(scope)
        if self._token is None or path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX):
            return True
        # Compared as bytes: the encoding of a header is not certain.
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token.encode())


async def reject(response: Response, close_code: int, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a connection to which nothing has been sent yet.

    Args:
        response: the answer.
        close_code: closes a WebSocket if the server cannot send an answer in place of the handshake; the client then
            sees a 403.
        scope: the connection's ASGI scope.
        receive: ASGI's channel from the client.
        send: ASGI's channel to the client.
    """
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await WebSocketClose(close_code)(scope, receive, send)
        return
    await response(scope, receive, send)
