"""What is counted of a request, and what the log says of it, around an application that a test makes up."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import Overloaded, ServiceError
from deployments.parsing.http.draining import InFlightRequests
from deployments.parsing.http.error_responses import on_service_error
from deployments.parsing.http.middleware import outer_layers
from deployments.parsing.http.request_context import context_of
from deployments.telemetry.metrics import RequestMetrics


class Counted:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reasons: list[str] = []
        self.under_way: list[int] = []
        self.ended: list[str] = []

    def finished(
        self, route: str, model_id: str, response_format: str, status: int, seconds: float, stages: Any
    ) -> None:
        self.requests.append({"route": route, "model_id": model_id, "status": status, "stages": dict(stages)})

    def rejected(self, reason: str) -> None:
        self.reasons.append(reason)

    def in_progress(self, count: int) -> None:
        self.under_way.append(count)


class Broken(Response):
    """An answer in whose middle the client goes away."""

    error: Exception = ClientDisconnect()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise self.error


class Overwhelmed(Broken):
    """An answer whose next piece cannot be had."""

    error = Overloaded("full")


class Faulty(Broken):
    """An answer in whose middle there is a bug."""

    error = ZeroDivisionError()


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def in_flight(counted: Counted) -> InFlightRequests:
    return InFlightRequests(counted.in_progress)


@pytest.fixture
def client(counted: Counted, in_flight: InFlightRequests) -> TestClient:
    app = FastAPI(exception_handlers={ServiceError: on_service_error})
    answers: dict[str, Callable[[], Response]] = {
        "fine": lambda: JSONResponse({}),
        "broken": Broken,
        "overwhelmed": Overwhelmed,
        "faulty": Faulty,
    }

    @app.get("/images/{image_id}")
    async def _(image_id: str, request: Request) -> Response:
        context = context_of(request)
        context.model_id, context.image_id = "m", image_id
        context.timing.add("decode", 0.25)
        context.at_end.callback(counted.ended.append, image_id)
        if image_id == "refused":
            raise Overloaded("full")
        if image_id == "bug":
            raise ZeroDivisionError
        return answers[image_id]()

    layered: ASGIApp = app
    for layer in reversed(outer_layers("s3cret", [], cast(RequestMetrics, counted), in_flight)):
        layered = layer.cls(layered, *layer.args, **layer.kwargs)
    return TestClient(layered, raise_server_exceptions=False, headers={"Authorization": "Bearer s3cret"})


@pytest.mark.parametrize("image_id", ["fine", "broken", "overwhelmed", "faulty", "refused", "bug"])
def test_what_a_request_holds_is_freed_however_it_ends(client: TestClient, counted: Counted, image_id: str) -> None:
    client.get(f"/images/{image_id}")
    assert counted.ended == [image_id]


def test_a_request_is_counted_by_its_route_and_not_by_what_stands_in_it(client: TestClient, counted: Counted) -> None:
    client.get("/images/fine")
    assert counted.requests == [
        {"route": "/images/{image_id}", "model_id": "m", "status": 200, "stages": {"decode": 0.25}}
    ]
    assert counted.under_way == [1, 0]
    assert counted.reasons == []


@pytest.mark.parametrize("path", ["/nowhere", "/images"])
def test_what_has_no_route_is_one_route(client: TestClient, counted: Counted, path: str) -> None:
    client.get(path)
    assert [(one["route"], one["status"]) for one in counted.requests] == [("other", 404)]


def test_a_refusal_is_counted_with_its_reason(client: TestClient, counted: Counted) -> None:
    client.get("/images/refused")
    client.get("/images/fine", headers={"Authorization": "Bearer wrong"})
    assert counted.reasons == ["overloaded", "unauthorized"]
    assert [one["status"] for one in counted.requests] == [503, 401]


def test_a_bug_is_counted_as_what_it_was_answered_with(client: TestClient, counted: Counted) -> None:
    client.get("/images/bug")
    assert [one["status"] for one in counted.requests] == [500]


def test_a_client_that_goes_away_in_the_middle_is_none_that_was_served(client: TestClient, counted: Counted) -> None:
    client.get("/images/broken")
    assert [one["status"] for one in counted.requests] == [499]
    assert counted.under_way[-1] == 0


@pytest.mark.parametrize(("image_id", "status", "reasons"), [("overwhelmed", 503, ["overloaded"]), ("faulty", 500, [])])
def test_an_answer_that_the_service_breaks_off_is_no_client_that_went_away(
    client: TestClient, counted: Counted, image_id: str, status: int, reasons: list[str]
) -> None:
    # The status line had been sent; the connection is closed, and the client knows that there is more.
    client.get(f"/images/{image_id}")
    assert [one["status"] for one in counted.requests] == [status]
    assert counted.reasons == reasons
    assert counted.under_way[-1] == 0


async def test_who_comes_when_the_service_ends_is_turned_away_and_who_is_inside_is_waited_for(
    client: TestClient, counted: Counted, in_flight: InFlightRequests
) -> None:
    assert await in_flight.close(0) == 0
    in_flight.count(2)
    closing = asyncio.create_task(in_flight.close(5))
    await asyncio.sleep(0.1)
    in_flight.count(-1)
    await asyncio.sleep(0.1)
    assert not closing.done()
    in_flight.count(-1)
    assert await closing == 0
    in_flight.count(1)
    assert await in_flight.close(0.1) == 1
    in_flight.count(-1)
    answer = client.get("/images/fine")
    assert (answer.status_code, answer.headers["connection"], answer.headers["retry-after"]) == (503, "close", "5")
    assert "shutting down" in answer.json()["detail"]["msg"]
    assert counted.reasons == ["shutting_down"]


def test_the_log_has_names_and_numbers_and_no_token(
    client: TestClient, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ray.serve"):
        client.get("/images/fine?text=private")
    [record] = [record for record in caplog.records if record.name == "ray.serve"]
    assert record.getMessage().startswith("GET /images/{image_id} 200 in ")
    assert {name: vars(record)[name] for name in ("model_id", "image_id", "status", "decode_ms")} == {
        "model_id": "m",
        "image_id": "fine",
        "status": 200,
        "decode_ms": 250.0,
    }
    assert not {"private", "s3cret"} & set(str(vars(record)).replace("=", " ").replace("'", " ").split())
