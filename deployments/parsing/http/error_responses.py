"""The shape that all error answers share, and the handlers that turn exceptions into error answers."""

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from deployments.errors import ServiceError
from deployments.parsing.http.request_context import note_rejection


def error_response(
    status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None
) -> Response:
    """Builds `{"detail": {"msg": …}}`, the shape of all errors but 422; some have a `code` too."""
    # JSON cannot hold lone surrogates, which stand for undecodable bytes in a client's text.
    detail = {"msg": message.encode("utf-8", "replace").decode()}
    if code is not None:
        detail["code"] = code
    return Response(orjson.dumps({"detail": detail}), status, headers, "application/json")


def service_error_response(
    connection: HTTPConnection, error: ServiceError, headers: dict[str, str] | None = None
) -> Response:
    """Builds the answer to a request that ends with a ServiceError, and notes the error for log and metrics."""
    note_rejection(connection, error)
    pause = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return error_response(error.status, error.message, {**pause, **(headers or {})}, error.code)


async def on_service_error(request: Request, error: Exception) -> Response:
    """Answers an error that the service raised on purpose."""
    assert isinstance(error, ServiceError)
    return service_error_response(request, error)


async def on_http_exception(_: Request, error: Exception) -> Response:
    """Answers what Starlette rejects: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), dict(error.headers or {}))


async def on_validation_error(_: Request, error: Exception) -> Response:
    """Answers a missing or ill-typed field in FastAPI's shape, but without the client's input: it may be megabytes."""
    assert isinstance(error, RequestValidationError)
    detail = [{"type": fault["type"], "loc": list(fault["loc"]), "msg": fault["msg"]} for fault in error.errors()]
    return Response(orjson.dumps({"detail": detail}), 422, media_type="application/json")
