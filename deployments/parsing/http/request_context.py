"""One HTTP request and its answer, from the first byte to the last: what is counted, and what the log says of it."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ServiceError
from deployments.parsing.stage_times import ServerTiming

if TYPE_CHECKING:
    from deployments.telemetry.metrics import RequestMetrics

CLIENT_CLOSED_REQUEST = 499
"""Not sent, since nobody is there to read it: the client went away, took nothing of its answer for too long, or had no
more of the time that it gave."""

UNROUTED = "other"

logger = logging.getLogger("ray.serve")


@dataclass
class Exchange:
    """What the routes find out about a request.

    Attributes:
        arrived_at: `time.perf_counter()` when it came.
        model_id: the configured model that it is for.
        response_format: of the answer.
        image_id: of its image.
        reason: why it was refused, for no fault of its own.
        timing: where the time went.
    """

    arrived_at: float = field(default_factory=time.perf_counter)
    model_id: str = ""
    response_format: str = ""
    image_id: str = ""
    reason: str = ""
    timing: ServerTiming = field(default_factory=ServerTiming)


def exchange_of(connection: HTTPConnection) -> Exchange:
    """The exchange that a request belongs to."""
    exchange = connection.scope.setdefault("state", {}).setdefault("exchange", Exchange())
    assert isinstance(exchange, Exchange)
    return exchange


def note_refusal(connection: HTTPConnection, error: ServiceError) -> None:
    """Remembers why a request is refused, if that counts as such."""
    exchange_of(connection).reason = error.rejection or ""


class Intake:
    """How many HTTP requests are under way, and whether more are let in.

    Args:
        on_change: told how many there are.
    """

    def __init__(self, on_change: Callable[[int], None] = lambda _: None) -> None:
        self.is_closed = False
        self._on_change = on_change
        self._under_way = 0

    def count(self, change: int) -> None:
        """One came (1), or is over (-1)."""
        self._under_way += change
        self._on_change(self._under_way)

    async def close(self, patience_s: float) -> int:
        """Lets nobody in any more, and waits for those who are inside; how many are left at the end."""
        self.is_closed = True
        until = time.monotonic() + patience_s
        while self._under_way and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self._under_way


class ExchangeLog:
    """ASGI middleware: counts every HTTP request, and logs those that segment, fail or are refused.

    A line holds names and numbers only: nothing of the image, no header, no form field.

    Args:
        app: the application inside.
        metrics: counts.
        intake: is told who comes and goes.
    """

    def __init__(self, app: ASGIApp, metrics: "RequestMetrics", intake: Intake) -> None:
        self._app = app
        self._metrics = metrics
        self._intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(HTTPConnection(scope))
        status, complete, broken = CLIENT_CLOSED_REQUEST, False, 0

        async def note(message: Message) -> None:
            nonlocal status, complete
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            complete = complete or (message["type"] == "http.response.body" and not message.get("more_body", False))

        self._intake.count(1)
        try:
            await self._app(scope, receive, note)
        except asyncio.CancelledError:
            complete = False
            raise
        except Exception as error:
            # It had begun; otherwise its status would have said so, and nothing would come to here.
            broken = _note_break(exchange, error)
            raise
        finally:
            self._intake.count(-1)
            self._finish(scope, exchange, broken or (status if complete else CLIENT_CLOSED_REQUEST))

    def _finish(self, scope: Scope, exchange: Exchange, status: int) -> None:
        route, seconds = _route(scope), time.perf_counter() - exchange.arrived_at
        stages = exchange.timing.seconds()
        if exchange.reason:
            self._metrics.rejected(exchange.reason)
        self._metrics.finished(route, exchange.model_id, exchange.response_format, status, seconds, stages)
        worth_a_line = status >= 400 or exchange.model_id
        logger.log(
            logging.INFO if worth_a_line else logging.DEBUG,
            "%s %s %d in %.3f s",
            scope["method"],
            route,
            status,
            seconds,
            extra=_fields(exchange, status, seconds, stages),
        )


def _note_break(exchange: Exchange, error: Exception) -> int:
    """The status that an answer would have had if it had not begun before what broke it off."""
    # Starlette raises an error of its own for what it cannot answer any more.
    cause = error.__cause__ or error
    if not isinstance(cause, ServiceError):
        return 500
    exchange.reason = cause.rejection or ""
    return cause.status


def _route(scope: Scope) -> str:
    """The path as it is registered, so that no image_id becomes a metric's tag."""
    path = str(getattr(scope.get("route"), "path", UNROUTED))
    return path.rstrip("/") or "/"


def _fields(exchange: Exchange, status: int, seconds: float, stages: dict[str, float]) -> dict[str, Any]:
    """Of the structured log (`encoding: JSON`), which has request_id, route, deployment and replica from Serve."""
    fields = {
        "status": status,
        "seconds": round(seconds, 4),
        "model_id": exchange.model_id,
        "image_id": exchange.image_id,
        "response_format": exchange.response_format,
        "cache": exchange.timing.cache,
        "rejected": exchange.reason,
        **{f"{stage}_ms": round(stage_s * 1000, 1) for stage, stage_s in stages.items()},
    }
    return {name: value for name, value in fields.items() if value != ""}
