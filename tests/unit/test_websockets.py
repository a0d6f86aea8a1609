"""WebSockets pass the same middleware as HTTP requests: token, draining, counts, log, unforeseen errors."""

import logging
from unittest.mock import Mock

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from deployments.parsing.http.draining import InFlightRequests
from deployments.parsing.http.middleware import outer_layers

TOKEN = {"Authorization": "Bearer s3cret"}


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        text = await socket.receive_text()
        if text == "bug":
            raise ZeroDivisionError
        if text == "end":
            break
        await socket.send_text(text)
    await socket.close()


async def unwilling(socket: WebSocket) -> None:
    await socket.close()


async def faulty(socket: WebSocket) -> None:
    raise ZeroDivisionError


@pytest.fixture
def metrics() -> Mock:
    return Mock()


@pytest.fixture
def in_flight() -> InFlightRequests:
    return InFlightRequests()


@pytest.fixture
def app(metrics: Mock, in_flight: InFlightRequests) -> ASGIApp:
    routes = [WebSocketRoute(f"/{name}", route) for name, route in (("echo", echo), ("no", unwilling), ("bug", faulty))]
    app: ASGIApp = Starlette(routes=routes)
    for layer in reversed(outer_layers("s3cret", [], metrics, in_flight)):
        app = layer.cls(app, *layer.args, **layer.kwargs)
    return app


@pytest.fixture
def client(app: ASGIApp) -> TestClient:
    return TestClient(app)


def without_denial_responses(app: ASGIApp) -> ASGIApp:
    """A server that can only close a WebSocket, as ASGI servers without the extension do."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "extensions": {}}, receive, send)

    return serve


def statuses(metrics: Mock) -> list[int]:
    return [call.args[3] for call in metrics.finished.call_args_list]


def test_a_socket_with_the_token_is_served_counted_and_logged(
    client: TestClient, metrics: Mock, in_flight: InFlightRequests, caplog: pytest.LogCaptureFixture
) -> None:
    counts: list[int] = []
    in_flight._on_change = counts.append
    with caplog.at_level(logging.INFO, "ray.serve"), client.websocket_connect("/echo", headers=TOKEN) as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
        assert counts == [1]
        socket.send_text("end")
        with pytest.raises(WebSocketDisconnect):
            socket.receive_text()
    assert counts == [1, 0]
    assert statuses(metrics) == [101]
    assert [record.getMessage()[:20] for record in caplog.records] == ["WEBSOCKET /echo 101 "]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_a_socket_without_the_token_is_rejected(client: TestClient, metrics: Mock, headers: dict[str, str]) -> None:
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/echo", headers=headers):
        pass
    assert denied.value.status_code == 401
    assert denied.value.json() == {"detail": {"msg": "Authorization: the bearer token is missing or wrong"}}
    assert statuses(metrics) == [401]
    metrics.rejected.assert_called_once_with("unauthorized")


async def test_a_socket_is_rejected_while_the_service_is_being_stopped(
    client: TestClient, metrics: Mock, in_flight: InFlightRequests
) -> None:
    await in_flight.close(0)
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/echo", headers=TOKEN):
        pass
    assert (denied.value.status_code, denied.value.headers["retry-after"]) == (503, "5")
    metrics.rejected.assert_called_once_with("shutting_down")


@pytest.mark.parametrize(
    ("path", "headers", "stopping", "code"),
    [("/echo", {}, False, 1008), ("/echo", TOKEN, True, 1012), ("/bug", TOKEN, False, 1011)],
)
async def test_a_server_that_cannot_answer_a_handshake_closes_the_socket(
    app: ASGIApp,
    metrics: Mock,
    in_flight: InFlightRequests,
    path: str,
    headers: dict[str, str],
    stopping: bool,
    code: int,
) -> None:
    if stopping:
        await in_flight.close(0)
    client = TestClient(without_denial_responses(app))
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect(path, headers=headers):
        pass
    assert closed.value.code == code
    assert statuses(metrics) == [403]


def test_a_socket_that_a_route_does_not_accept_counts_as_forbidden(client: TestClient, metrics: Mock) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/no", headers=TOKEN):
        pass
    assert statuses(metrics) == [403]


def test_a_bug_before_the_handshake_is_a_500(client: TestClient, metrics: Mock) -> None:
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/bug", headers=TOKEN):
        pass
    assert denied.value.status_code == 500
    assert statuses(metrics) == [500]


def test_a_bug_in_an_open_socket_closes_it_and_stands_in_the_log(
    client: TestClient, metrics: Mock, caplog: pytest.LogCaptureFixture
) -> None:
    def provoke() -> None:
        with client.websocket_connect("/echo", headers=TOKEN) as socket:
            socket.send_text("bug")
            assert socket.receive()["code"] == 1011

    with caplog.at_level(logging.ERROR, "ray.serve"), pytest.raises(ZeroDivisionError):
        provoke()
    assert statuses(metrics) == [500]
    [record] = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


def test_a_client_that_leaves_an_open_socket_ends_it_in_order(
    client: TestClient, metrics: Mock, in_flight: InFlightRequests
) -> None:
    with client.websocket_connect("/echo", headers=TOKEN) as socket:
        socket.send_text("hello")
        socket.receive_text()
    assert statuses(metrics) == [101]
    assert in_flight._under_way == 0
