"""What is known of one HTTP request while it is served, for its access log, its metrics and its Server-Timing."""

import time
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from deployments.errors import ServiceError
from deployments.parsing.stage_times import StageTimes


@dataclass
class RequestContext:
    """What the routes and the middleware find out about a request.

    Attributes:
        arrived_at: `time.perf_counter()` when it came.
        model_id: the configured model that it is for.
        response_format: of the answer.
        image_id: of its image.
        reason: why it was rejected, for no fault of its own.
        timing: where the time went.
    """

    arrived_at: float = field(default_factory=time.perf_counter)
    model_id: str = ""
    response_format: str = ""
    image_id: str = ""
    reason: str = ""
    timing: StageTimes = field(default_factory=StageTimes)


def context_of(connection: HTTPConnection) -> RequestContext:
    """The context of a request."""
    context = connection.scope.setdefault("state", {}).setdefault("request_context", RequestContext())
    assert isinstance(context, RequestContext)
    return context


def note_rejection(connection: HTTPConnection, error: ServiceError) -> None:
    """Notes why a request is rejected, if the metrics count that as a rejection."""
    context_of(connection).reason = error.rejection or ""
