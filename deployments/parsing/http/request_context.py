"""RequestContext: facts about one HTTP request, for its access log, its metrics and its `Server-Timing` header."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from deployments.errors import ServiceError
from deployments.parsing.deadline import Deadline
from deployments.parsing.stage_times import StageTimes

if TYPE_CHECKING:
    # It imports Ray, and forms are read without Ray too.
    from deployments.parsing.segmenter import Segmenter


@dataclass
class RequestContext:
    """Facts that the routes and the middleware note about a request; "" if not known.

    Attributes:
        arrived_at: `time.perf_counter()` when the request arrived.
        model_id: the configured model that the request is for.
        response_format: the format of the answer.
        image_id: the id of the image.
        reason: why the request was rejected, as the metrics name it: `ServiceError.rejection`.
        timing: the seconds of each stage.
        at_end: what is done when the request is over, however it ends: also if its answer was never begun.
    """

    arrived_at: float = field(default_factory=time.perf_counter)
    model_id: str = ""
    response_format: str = ""
    image_id: str = ""
    reason: str = ""
    timing: StageTimes = field(default_factory=StageTimes)
    at_end: ExitStack = field(default_factory=ExitStack)


def context_of(connection: HTTPConnection) -> RequestContext:
    """Returns the context of a request; the first call creates it."""
    context = connection.scope.setdefault("state", {}).setdefault("request_context", RequestContext())
    assert isinstance(context, RequestContext)
    return context


def note_rejection(connection: HTTPConnection, error: ServiceError) -> None:
    """Notes why a request is rejected, if the metrics count that as a rejection."""
    context_of(connection).reason = error.rejection or ""


def deadline_of(connection: HTTPConnection, segmenter: "Segmenter", timeout_s: float | None = None) -> Deadline:
    """Returns the deadline of a request that has just been read.

    Args:
        connection: the request; its `x-request-timeout-seconds` may shorten the time.
        segmenter: knows the service's own limit.
        timeout_s: a limit in place of that one.
    """
    elapsed_s = time.perf_counter() - context_of(connection).arrived_at
    return segmenter.deadline(connection.headers.get("x-request-timeout-seconds", ""), elapsed_s, timeout_s)
