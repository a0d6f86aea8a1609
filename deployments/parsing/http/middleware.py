"""The outermost layer of every HTTP request: its token, and the one place where an unforeseen error ends."""

import hmac
import logging
from collections.abc import Sequence

import orjson
from fastapi.exceptions import RequestValidationError
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ServiceError, ShuttingDown, Unauthorized
from deployments.parsing.http.access_log import AccessLogMiddleware
from deployments.parsing.http.draining import InFlightRequests
from deployments.parsing.http.request_context import note_refusal
from deployments.telemetry.metrics import RequestMetrics

PUBLIC_PATHS = {"/", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/health", "/ready"}
PUBLIC_PREFIX = "/page/"
"""The files of the page at `/`, which asks for the token."""

EXPOSED_HEADERS = ["X-Image-Id", "X-Mask-Index", "X-Score", "X-Request-Id", "Server-Timing", "Retry-After"]
"""Headers of answers that pages of other origins may read."""

logger = logging.getLogger("ray.serve")


def error_response(
    status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None
) -> Response:
    """`{"detail": {"msg": …}}`, the shape of all errors but a missing or ill-typed field; some have a `code` too."""
    # Lone surrogates, from undecodable bytes in a client's text, are not JSON.
    detail = {"msg": message.encode("utf-8", "replace").decode()}
    if code is not None:
        detail["code"] = code
    return Response(orjson.dumps({"detail": detail}), status, headers, "application/json")


def _refusal(connection: HTTPConnection, error: ServiceError, headers: dict[str, str] | None = None) -> Response:
    """The answer to a request that ends with an error of ours, which is noted for the log and the metrics."""
    note_refusal(connection, error)
    pause = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return error_response(error.status, error.message, {**pause, **(headers or {})}, error.code)


async def on_service_error(request: Request, error: Exception) -> Response:
    """An error that the service raised on purpose."""
    assert isinstance(error, ServiceError)
    return _refusal(request, error)


async def on_http_exception(_: Request, error: Exception) -> Response:
    """Starlette's own refusals: unknown path, wrong method."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), dict(error.headers or {}))


async def on_validation_error(_: Request, error: Exception) -> Response:
    """A missing or ill-typed field, in FastAPI's shape but without the client's input, which may be megabytes."""
    assert isinstance(error, RequestValidationError)
    detail = [{"type": fault["type"], "loc": list(fault["loc"]), "msg": fault["msg"]} for fault in error.errors()]
    return Response(orjson.dumps({"detail": detail}), 422, media_type="application/json")


def outer_layers(
    token: str | None, cors_origins: Sequence[str], metrics: RequestMetrics, in_flight: InFlightRequests
) -> list[Middleware]:
    """The middleware of the application, the outermost first.

    Args:
        token: see `Boundary`.
        cors_origins: whose pages may use the service from a browser; `*` for all.
        metrics: count what comes.
        in_flight: says whether anything may come.
    """
    log = Middleware(AccessLogMiddleware, metrics=metrics, in_flight=in_flight)
    layers = [log, Middleware(Boundary, token=token, in_flight=in_flight)]
    if not cors_origins:
        return layers
    # Outside of the boundary: a browser asks whether it may before it sends the token, and reads a refusal too.
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    return [cors, *layers]


class Boundary:
    """ASGI middleware: checks the bearer token, turns away who comes too late, and turns a bug into a 500.

    Serve's own middleware gives every request its id and every answer its `X-Request-Id`.

    Args:
        app: the application inside.
        token: what `Authorization: Bearer` must carry on all but public paths; None accepts everyone.
        in_flight: says whether the service takes anything new.
    """

    def __init__(self, app: ASGIApp, token: str | None, in_flight: InFlightRequests) -> None:
        self._app = app
        self._token = token
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")[:128]
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._authorized(scope)(scope, receive, note_start)
        except ClientDisconnect:
            logger.info("request %r: the client went away, or stopped reading", request_id)
        # The last resort: whatever it is, the client gets an answer, the log the cause, and the replica lives on.
        except Exception:
            logger.exception("request %r failed", request_id)
            if started:
                raise
            response = error_response(500, "internal error; the log has it under this answer's X-Request-Id")
            await response(scope, receive, note_start)

    def _authorized(self, scope: Scope) -> ASGIApp:
        """The application, or the refusal."""
        if self._in_flight.is_closed:
            late = ShuttingDown("the service is shutting down; send the request again")
            return _refusal(HTTPConnection(scope), late, {"Connection": "close"})
        path = get_route_path(scope)
        if self._token is None or path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX):
            return self._app
        # As bytes: a header is not text until somebody decides on its encoding.
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token.encode()):
            return self._app
        unknown = Unauthorized("Authorization: the bearer token is missing or wrong")
        return _refusal(HTTPConnection(scope), unknown, {"WWW-Authenticate": "Bearer"})
