"""The outermost layer: the bearer token, and what becomes of errors."""

import asyncio
import hmac
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import ImageNotCached, InvalidPrompt, ModelUnavailable, Overloaded, ServiceError, TooLarge
from deployments.parsing.http import middleware
from deployments.parsing.http.draining import InFlightRequests
from deployments.parsing.http.error_responses import on_http_exception, on_service_error, on_validation_error
from deployments.parsing.http.middleware import PUBLIC_PATHS, PUBLIC_PREFIX, outer_layers
from deployments.parsing.http.tolerance import PathMiddleware
from deployments.telemetry.metrics import RequestMetrics


def application(
    token: str | None = None, error: Exception | None = None, cors_origins: tuple[str, ...] = ()
) -> FastAPI:
    """Every path says OK, or fails with `error`."""
    app = FastAPI(
        middleware=outer_layers(token, cors_origins, RequestMetrics(), InFlightRequests()),
        exception_handlers={
            ServiceError: on_service_error,
            HTTPException: on_http_exception,
            RequestValidationError: on_validation_error,
        },
        docs_url=None,
        openapi_url=None,
    )

    @app.get("/number")
    async def _(number: int) -> int:
        return number

    @app.get("/streamed")
    async def _() -> StreamingResponse:
        async def body() -> Any:
            yield b"begun"
            raise RuntimeError("in the middle")

        return StreamingResponse(body())

    @app.get("/{path:path}")
    async def _() -> str:
        if error is not None:
            raise error
        return "OK"

    return app


def get(app: FastAPI, path: str = "/models", headers: Any = None) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.get(f"http://service{path}", headers=headers)

    return asyncio.run(send())


def head(app: FastAPI, path: str) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.head(path)

    return asyncio.run(send())


def authorization(value: str) -> list[tuple[bytes, bytes]]:
    return [(b"Authorization", value.encode())]


# ---- the token


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer  {} "])
def test_the_right_token_opens(header: str) -> None:
    assert get(application("s3cret"), headers={"Authorization": header.format("s3cret")}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer s3cre"},
        {"Authorization": "Bearer s3crett"},
        {"Authorization": "Bearer S3CRET"},
        {"Authorization": "s3cret"},
        {"Authorization": "Basic s3cret"},
        {"Authorization": "Token s3cret"},
        {"X-Authorization": "Bearer s3cret"},
    ],
    ids=str,
)
def test_anything_else_is_refused(headers: dict[str, str]) -> None:
    response = get(application("s3cret"), headers=headers)

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json() == {"detail": {"msg": "Authorization: the bearer token is missing or wrong"}}


def test_a_header_that_is_not_ascii_is_refused_and_breaks_nothing() -> None:
    assert get(application("s3cret"), headers=authorization("Bearer ключ")).status_code == 401


@pytest.mark.parametrize("path", [*sorted(PUBLIC_PATHS), f"{PUBLIC_PREFIX}app.js"])
def test_public_paths_need_no_token(path: str) -> None:
    assert get(application("s3cret"), path).status_code == 200


def test_the_public_paths_are_those_of_the_contract() -> None:
    docs = {"/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"}
    assert {"/", "/openapi.json", "/health", "/ready"} | docs == PUBLIC_PATHS


@pytest.mark.parametrize(
    "path",
    [
        "/segment-anything-2",
        "/models",
        "/version",
        "/hardware/info",
        "/docs/x",
        "/docs/swagger-ui.css/x",
        "/healthy",
        "/HEALTH",
        "/page",
        "/pages",
    ],
)
def test_all_other_paths_need_one(path: str) -> None:
    assert get(application("s3cret"), path).status_code == 401


def test_without_a_configured_token_everyone_may_enter() -> None:
    assert get(application(None), headers={"Authorization": "Bearer whatever"}).status_code == 200


# ---- paths and HEAD


@pytest.mark.parametrize("path", ["/health/", "//health", "/health//", "///health///"])
def test_slashes_too_many_do_not_count(path: str) -> None:
    # Public as /health is, and not the token's.
    assert get(application("s3cret"), path).status_code == 200
    assert get(application("s3cret"), path.replace("health", "models")).status_code == 401
    assert get(application(), path.replace("health", "number") + "?number=7").json() == 7


@pytest.mark.parametrize(
    ("path", "root", "routed"),
    [
        ("/", "", "/"),
        ("//", "", "/"),
        ("/sam", "/sam", "/sam/"),
        ("/sam/", "/sam", "/sam/"),
        ("/sam//health/", "/sam", "/sam/health"),
        ("/health", "", "/health"),
    ],
)
async def test_a_paths_prefix_stays(path: str, root: str, routed: str) -> None:
    seen: list[Scope] = []

    async def inside(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def never(*_: Any) -> Any: ...

    scope = {"type": "http", "path": path, "root_path": root, "raw_path": path.encode()}
    await PathMiddleware(inside)(scope, never, never)
    assert [(one["path"], one["raw_path"], one["root_path"]) for one in seen] == [(routed, path.encode(), root)]


@pytest.mark.parametrize("path", ["/number?number=7", "/anything", "/number?number=x"])
def test_head_gets_what_get_gets_but_no_body(path: str) -> None:
    response, expected = head(application(), path), get(application(), path)
    assert (response.status_code, response.content) == (expected.status_code, b"")
    assert response.headers == expected.headers
    assert expected.content


# ---- other origins

PAGE = {"Origin": "https://example.org"}
ALLOWED = "access-control-allow-origin"


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [((), None), (("https://other.org",), None), (("https://example.org",), "https://example.org"), (("*",), "*")],
)
def test_pages_of_an_origin_that_is_listed_may_read_answers_and_refusals(
    origins: tuple[str, ...], allowed: str | None
) -> None:
    app = application("s3cret", cors_origins=origins)
    good = get(app, headers={**PAGE, "Authorization": "Bearer s3cret"})
    refused = get(app, headers=PAGE)
    assert [good.status_code, refused.status_code] == [200, 401]
    assert {response.headers.get(ALLOWED) for response in (good, refused)} == {allowed}
    if allowed:
        assert {"X-Image-Id", "X-Video-Id"} <= set(good.headers["access-control-expose-headers"].split(", "))


async def test_a_browser_may_ask_whether_it_may_before_it_sends_the_token() -> None:
    async def preflight(origin: str) -> httpx.Response:
        transport = httpx.ASGITransport(application("s3cret", cors_origins=("https://example.org",)))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            asked = {
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
                "Origin": origin,
            }
            return await client.options("/segment-anything-2", headers=asked)

    allowed = await preflight("https://example.org")
    assert allowed.status_code == 200
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert ALLOWED not in (await preflight("https://evil.org")).headers


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(middleware, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    get(application("s3cret"), headers={"Authorization": "Bearer wrong"})

    assert compared == [(b"wrong", b"s3cret")]


async def test_the_servers_own_messages_pass_through() -> None:
    seen: list[str] = []

    async def inside(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    async def never() -> Any: ...

    async def ignore(_: Any) -> None: ...

    in_flight = InFlightRequests()
    await in_flight.close(0)
    app: ASGIApp = inside
    for layer in reversed(outer_layers("s3cret", [], RequestMetrics(), in_flight)):
        app = layer.cls(app, *layer.args, **layer.kwargs)
    await app({"type": "lifespan"}, never, ignore)

    assert seen == ["lifespan"]


# ---- errors


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (InvalidPrompt("box: is empty"), 400, None),
        (ImageNotCached("image_id: upload it"), 404, None),
        (TooLarge("image: too much"), 413, None),
        (ModelUnavailable("model m: loading"), 503, "10"),
        (Overloaded("overloaded: queue"), 503, "1"),
    ],
)
def test_an_error_of_ours_answers_with_its_status_and_message(
    error: ServiceError, status: int, retry_after: str | None
) -> None:
    response = get(application(error=error))

    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    code = {"code": "image_not_cached"} if isinstance(error, ImageNotCached) else {}
    assert response.json() == {"detail": {"msg": error.message, **code}}
    assert response.headers.get("retry-after") == retry_after


def test_a_lone_surrogate_in_a_message_still_makes_json() -> None:
    assert get(application(error=InvalidPrompt("model_id: \udcff"))).json() == {"detail": {"msg": "model_id: ?"}}


def test_a_refusal_of_starlettes_own_has_the_same_shape() -> None:
    response = get(application(error=HTTPException(405, "Method Not Allowed", {"Allow": "POST"})))

    assert (response.status_code, response.json()) == (405, {"detail": {"msg": "Method Not Allowed"}})
    assert response.headers["allow"] == "POST"


def test_an_ill_typed_field_is_told_without_what_the_client_sent() -> None:
    response = get(application(), "/number?number=" + "x" * 1000)

    assert response.status_code == 422
    [fault] = response.json()["detail"]
    assert fault["loc"] == ["query", "number"]
    assert set(fault) == {"type", "loc", "msg"}
    assert "xxx" not in response.text


def test_a_bug_becomes_a_500_and_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "ray.serve"):
        response = get(application(error=ZeroDivisionError("a bug")), headers={"X-Request-Id": "request-7"})

    assert response.status_code == 500
    assert response.json() == {"detail": {"msg": "internal error; the log has it under this answer's X-Request-Id"}}
    assert "a bug" not in response.text
    [record] = caplog.records
    assert "request-7" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


def test_a_bug_in_the_middle_of_an_answer_breaks_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "ray.serve"), pytest.raises(RuntimeError, match="in the middle"):
        get(application(), "/streamed")

    assert len(caplog.records) == 1
