"""Counts and logs each HTTP request and WebSocket, from its first byte to the last byte of its answer."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ServiceError
from deployments.parsing.http.draining import InFlightRequests
from deployments.parsing.http.request_context import RequestContext, context_of

if TYPE_CHECKING:
    from deployments.telemetry.metrics import RequestMetrics

logger = logging.getLogger("ray.serve")

CLIENT_CLOSED_REQUEST = 499
"""Logged but never sent, since no client is there to read it: the client went away, read nothing of its answer for too
long, or the time that it allowed for the request ran out."""

UNROUTED = "other"


SWITCHING_PROTOCOLS, FORBIDDEN = 101, 403


class Outcome:
    """How a request ends, read from the messages that are sent to its client.

    Attributes:
        status: status of the answer; 101 if a WebSocket was accepted.
        complete: whether the whole answer was sent. An accepted WebSocket may end at any time.
    """

    def __init__(self) -> None:
        self.status = CLIENT_CLOSED_REQUEST
        self.complete = False

    def note(self, message: Message) -> None:
        """Notes a message that has been sent."""
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                self.status = message["status"]
            case "http.response.body" | "websocket.http.response.body":
                self.complete = self.complete or not message.get("more_body", False)
            case "websocket.accept":
                self.status, self.complete = SWITCHING_PROTOCOLS, True
            case "websocket.close" if not self.complete:
                # The server answers 403 if the handshake was not accepted.
                self.status, self.complete = FORBIDDEN, True


class AccessLogMiddleware:
    """ASGI middleware: counts every HTTP request and WebSocket, and logs those that segment, fail or are rejected.

    A line holds names and numbers only: nothing of the image or the prompt, and no token.

    Args:
        app: the application inside.
        metrics: counts the requests that have ended.
        in_flight: counts the requests under way.
    """

    def __init__(self, app: ASGIApp, metrics: "RequestMetrics", in_flight: InFlightRequests) -> None:
        self._app = app
        self._metrics = metrics
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        context, outcome, broken = context_of(HTTPConnection(scope)), Outcome(), 0

        async def note(message: Message) -> None:
            await send(message)
            outcome.note(message)

        self._in_flight.count(1)
        try:
            await self._app(scope, receive, note)
        except asyncio.CancelledError:
            # The client is gone. Serve cancels an accepted WebSocket's handler even after an ordinary close.
            outcome.complete = outcome.status == SWITCHING_PROTOCOLS
            raise
        except Exception as error:
            # The answer had begun. Before that, the error would have become an error answer further inside.
            broken = _note_break(context, error)
            raise
        finally:
            self._in_flight.count(-1)
            context.at_end.close()
            self._finish(scope, context, broken or (outcome.status if outcome.complete else CLIENT_CLOSED_REQUEST))

    def _finish(self, scope: Scope, context: RequestContext, status: int) -> None:
        route, seconds = _route(scope), time.perf_counter() - context.arrived_at
        stages = context.timing.seconds()
        if context.reason:
            self._metrics.rejected(context.reason)
        self._metrics.finished(route, context.model_id, context.response_format, status, seconds, stages)
        worth_a_line = status >= 400 or status == SWITCHING_PROTOCOLS or context.model_id
        logger.log(
            logging.INFO if worth_a_line else logging.DEBUG,
            "%s %s %d in %.3f s",
            scope.get("method", "WEBSOCKET"),
            route,
            status,
            seconds,
            extra=_fields(context, status, seconds, stages),
        )


def _note_break(context: RequestContext, error: Exception) -> int:
    """Returns the status that the answer would have had if the error had come before its first byte."""
    # If the answer has begun, Starlette wraps the error in an error of its own.
    cause = error.__cause__ or error
    if not isinstance(cause, ServiceError):
        return 500
    context.reason = cause.rejection or ""
    return cause.status


def _route(scope: Scope) -> str:
    """Returns the path as it is registered, so that no image_id becomes a metric's tag."""
    path = str(getattr(scope.get("route"), "path", UNROUTED))
    return path.rstrip("/") or "/"


def _fields(context: RequestContext, status: int, seconds: float, stages: dict[str, float]) -> dict[str, Any]:
    """Returns the fields to add to the structured log (`encoding: JSON`).

    Serve itself adds request_id, route, deployment and replica.
    """
    fields = {
        "status": status,
        "seconds": round(seconds, 4),
        "model_id": context.model_id,
        "image_id": context.image_id,
        "response_format": context.response_format,
        "cache": context.timing.cache,
        "rejected": context.reason,
        **{f"{stage}_ms": round(stage_s * 1000, 1) for stage, stage_s in stages.items()},
    }
    return {name: value for name, value in fields.items() if value != ""}
