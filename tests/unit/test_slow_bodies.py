"""Bodies that come a byte at a time do not keep others out."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Form

from deployments.errors import ServiceError
from deployments.parsing.http import slow_bodies
from deployments.parsing.http.error_responses import on_service_error
from deployments.parsing.http.form import form_route
from deployments.parsing.http.slow_bodies import SlowBodies
from deployments.parsing.http.upload_budget import UploadBudget, UploadBudgets
from deployments.settings import Limits

MOST = 4
HEADERS = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_bodies, "GRACE_S", 0.2)
    monkeypatch.setattr(slow_bodies, "CHECK_S", 0.05)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI(exception_handlers={ServiceError: on_service_error})
    text, files = (UploadBudget(lambda: 2**30, "full", lambda: 60.0) for _ in range(2))
    budgets = UploadBudgets(text, files, SlowBodies(lambda: MOST))
    app.router.route_class = form_route(Limits(), {}, lambda: 3.0, budgets)

    @app.post("/")
    async def post(mask_input: str = Form("")) -> int:
        return len(mask_input)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as one:
        yield one


async def send(client: httpx.AsyncClient, pieces: int, nbytes: int, pause_s: float) -> httpx.Response:
    async def content() -> AsyncIterator[bytes]:
        yield b"mask_input="
        for _ in range(pieces):
            await asyncio.sleep(pause_s)
            yield b"1" * nbytes

    return await client.post("/", content=content(), headers=HEADERS)


async def statuses(*requests: Any) -> list[int]:
    return [response.status_code for response in await asyncio.gather(*requests)]


async def test_up_to_the_limit_slow_bodies_arrive(client: httpx.AsyncClient) -> None:
    assert await statuses(*(send(client, 8, 1, 0.1) for _ in range(MOST))) == MOST * [200]


async def test_beyond_it_the_slowest_are_ended_and_the_others_arrive(client: httpx.AsyncClient) -> None:
    slow = [send(client, 8, 1 + index, 0.1) for index in range(MOST + 3)]
    fast = [send(client, 8, 20_000, 0.1) for _ in range(MOST)]
    found = await statuses(*slow, *fast)
    assert found[-MOST:] == MOST * [200]
    # As many as are too many, those that came least first; when the fast ones have arrived, nobody is in the way.
    assert found.count(408) == 7
    assert found[:7] == 7 * [408]


async def test_a_body_that_was_ended_is_told_why(client: httpx.AsyncClient) -> None:
    others = [asyncio.ensure_future(send(client, 10, 1, 0.1)) for _ in range(MOST)]
    answer = await send(client, 10, 0, 0.1)
    assert answer.status_code == 408
    assert answer.json()["detail"]["msg"].startswith("body: came at less than 16384 bytes/s while very many others")
    assert [response.status_code for response in await asyncio.gather(*others)] == MOST * [200]


async def test_fast_bodies_are_never_ended_however_many(client: httpx.AsyncClient) -> None:
    assert await statuses(*(send(client, 6, 20_000, 0.1) for _ in range(3 * MOST))) == 3 * MOST * [200]


async def test_a_late_body_is_still_late(client: httpx.AsyncClient) -> None:
    answer = await send(client, 40, 1, 0.1)
    assert answer.json()["detail"]["msg"] == "body: did not arrive within 3 s"


async def test_what_is_about_to_leave_is_not_counted_and_not_ended_again() -> None:
    """A body whose clock has run out may still be busy: its clock cannot be set any more."""
    slow, most = SlowBodies(lambda: most), 2
    loop = asyncio.get_running_loop()
    faults: list[Any] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))

    async def arrive(busy_s: float) -> bool:
        try:
            async with asyncio.timeout(0.8) as clock:
                with slow.arrival(clock) as one:
                    try:
                        await asyncio.sleep(0.6)
                    finally:
                        await asyncio.sleep(busy_s)
        except TimeoutError:
            pass
        return one.was_ended

    ended = await asyncio.gather(*(arrive(0.3) for _ in range(3)))
    assert sum(ended) == 1
    assert faults == []
