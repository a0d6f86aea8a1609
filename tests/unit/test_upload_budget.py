"""What bodies that arrive together may hold: the oldest goes on, small ones too, others wait, then get 503."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Form, UploadFile

from deployments.errors import Overloaded, ServiceError
from deployments.parsing.http.error_responses import on_service_error
from deployments.parsing.http.form import form_route
from deployments.parsing.http.slow_bodies import SlowBodies
from deployments.parsing.http.upload_budget import IN_MEMORY_BYTES, Line, UploadBudget, UploadBudgets
from deployments.settings import Limits

LIMIT = 10 * IN_MEMORY_BYTES
NOT_SLOW = SlowBodies(lambda: 1000)


def budget(wait_s: float = 60.0) -> UploadBudget:
    return UploadBudget(lambda: LIMIT, "too much", lambda: wait_s)


async def is_held_up(held: object) -> bool:
    task = asyncio.ensure_future(held.room())  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)
    if task.done():
        task.result()
        return False
    task.cancel()
    return True


async def test_the_oldest_goes_on_and_others_wait_until_there_is_room() -> None:
    shared = budget()
    with ExitStack() as older, ExitStack() as newer:
        first, second = older.enter_context(shared.share()), newer.enter_context(shared.share())
        second.add(LIMIT // 2)
        first.add(LIMIT // 2)
        assert not await is_held_up(first)
        assert not await is_held_up(second)
        first.add(1)
        # The second held much before the first did.
        assert await is_held_up(first)
        assert not await is_held_up(second)
        waiting = asyncio.create_task(first.room())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        newer.close()
        await asyncio.wait_for(waiting, 1)
        assert shared.nbytes == LIMIT // 2 + 1
    assert shared.nbytes == 0


async def test_a_small_body_never_waits() -> None:
    shared = budget()
    with shared.share() as large, shared.share() as small:
        large.add(2 * LIMIT)
        small.add(IN_MEMORY_BYTES)
        assert not await is_held_up(small)
        small.add(1)
        assert await is_held_up(small)


async def test_who_waits_in_vain_is_told_to_come_again() -> None:
    shared = budget(wait_s=0.05)
    with shared.share() as first, shared.share() as second:
        first.add(LIMIT)
        second.add(LIMIT)
        with pytest.raises(Overloaded, match="overloaded: too much") as raised:
            await second.room()
        assert raised.value.retry_after_s
        assert not await is_held_up(first)


async def test_a_body_that_has_arrived_lets_the_next_one_be_the_oldest() -> None:
    shared = budget()
    with shared.share() as first, shared.share() as second, shared.share() as third:
        for held in (first, second, third):
            held.add(LIMIT)
        waiting = asyncio.create_task(second.room())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        first.arrived()
        # What is decoded of it only now puts it into no line again.
        first.add(1)
        await asyncio.wait_for(waiting, 1)
        assert await is_held_up(third)
        assert shared.nbytes == 3 * LIMIT + 1
        second.arrived()
        third.arrived()
        with shared.share() as fourth:
            fourth.add(LIMIT)
            assert not await is_held_up(fourth)


async def test_what_a_thread_reads_of_a_cancelled_body_does_not_count() -> None:
    shared = budget()
    with shared.share() as cancelled:
        cancelled.add(LIMIT)
    cancelled.add(LIMIT)
    assert shared.nbytes == 0
    with shared.share() as first, shared.share() as second:
        first.add(LIMIT)
        second.add(LIMIT)
        assert not await is_held_up(first)


async def test_two_budgets_have_one_oldest_body() -> None:
    line = Line()
    texts, files = (UploadBudget(lambda: LIMIT, "too much", lambda: 60.0, line) for _ in range(2))
    budgets = UploadBudgets(texts, files, NOT_SLOW)
    with budgets.share() as first, budgets.share() as second:
        first.text.add(LIMIT)
        second.files.add(LIMIT)
        second.text.add(LIMIT)
        first.files.add(LIMIT)
        for held in (first.text, first.files):
            assert not await is_held_up(held)
        for held in (second.text, second.files):
            assert await is_held_up(held)


async def test_the_clock_of_a_body_that_waits_does_not_run_and_its_end_needs_no_room() -> None:
    budgets = UploadBudgets(texts := budget(), budget(), NOT_SLOW)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"
        yield b""

    with ExitStack() as others, budgets.share() as upload:
        older = others.enter_context(texts.share())
        older.add(LIMIT)
        asyncio.get_running_loop().call_later(0.3, others.close)
        async with asyncio.timeout(0.2) as clock:
            found = []
            with budgets.slow.arrival(clock) as arrival:
                async for piece in upload.in_turn(pieces(), arrival):
                    found.append(piece)
                    upload.text.add(2 * IN_MEMORY_BYTES)
        assert found == [b"1", b"2", b""]


async def test_of_many_that_wait_all_come_to_their_end() -> None:
    shared, most = budget(), 0

    async def arrive() -> None:
        nonlocal most
        with shared.share() as held:
            for _ in range(8):
                await held.room()
                held.add(IN_MEMORY_BYTES // 2)
                most = max(most, shared.nbytes)
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)

    await asyncio.wait_for(asyncio.gather(*(arrive() for _ in range(40))), 10)
    assert shared.nbytes == 0
    # All of them while they are small, one piece more of each, and all of the oldest one; without a bound it is 160.
    assert most <= (40 + 20 + 4) * IN_MEMORY_BYTES


@pytest.fixture(params=["multipart", "urlencoded", "json"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def service(uploads: UploadBudgets) -> FastAPI:
    app = FastAPI(exception_handlers={ServiceError: on_service_error})
    app.router.route_class = form_route(Limits(), {"image": 2**25}, lambda: 60.0, uploads)

    @app.post("/")
    async def post(mask_input: str | None = Form(None), image: UploadFile | None = None) -> dict[str, int]:
        return {"text": uploads.text.nbytes, "files": uploads.files.nbytes}

    return app


TEXT = "[" + "1," * 200_000 + "1]"


@pytest.fixture
async def uploads() -> UploadBudgets:
    return UploadBudgets(text=budget(0.1), files=budget(0.1), slow=NOT_SLOW)


@pytest.fixture
async def client(uploads: UploadBudgets) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=service(uploads))
    async with httpx.AsyncClient(transport=transport, base_url="http://s") as one:
        yield one


async def post_text(client: httpx.AsyncClient, kind: str, text: str) -> httpx.Response:
    body: Any = {
        "multipart": {"files": {"mask_input": (None, text)}},
        "urlencoded": {"data": {"mask_input": text}},
        "json": {"json": {"mask_input": text}},
    }[kind]
    return await post(client, **body)


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    """Sends a body in pieces, as a server takes it from a socket."""
    request = client.build_request("POST", "/", **body)
    content = request.read()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 50_000):
            yield content[start : start + 50_000]

    return await client.post("/", content=pieces(), headers={"Content-Type": request.headers["Content-Type"]})


async def test_the_texts_of_each_kind_of_body_count_until_the_request_is_answered(
    client: httpx.AsyncClient, uploads: UploadBudgets, kind: str
) -> None:
    held = (await post_text(client, kind, TEXT)).json()
    assert len(TEXT) <= held["text"] <= 3.1 * len(TEXT)
    assert held["files"] == 0
    assert uploads.text.nbytes == uploads.files.nbytes == 0


async def test_a_body_that_finds_no_room_gets_503_and_leaves_nothing(
    client: httpx.AsyncClient, uploads: UploadBudgets, kind: str
) -> None:
    with uploads.text.share() as other:
        other.add(LIMIT)
        answer = await post_text(client, kind, TEXT)
        assert answer.status_code == 503
        assert answer.json()["detail"]["msg"] == "overloaded: too much"
        assert answer.headers["Retry-After"]
        assert (await post_text(client, kind, "[]")).status_code == 200
    assert uploads.text.nbytes == 0


async def test_files_count_as_files(client: httpx.AsyncClient, uploads: UploadBudgets) -> None:
    content = bytes(300_000)
    # So much of a file is in memory before it goes to disk.
    expected = {"text": IN_MEMORY_BYTES, "files": len(content)}
    assert (await post(client, files={"image": ("a.png", content)})).json() == expected
    answer = await post(client, json={"image": base64.b64encode(content).decode()})
    # JSON's names are texts as well.
    assert answer.json() == {**expected, "text": IN_MEMORY_BYTES + len("image")}
    assert uploads.files.nbytes == 0


async def test_small_files_in_any_number_count_as_memory(client: httpx.AsyncClient, uploads: UploadBudgets) -> None:
    with uploads.text.share() as other:
        other.add(LIMIT)
        files = [(f"other{number}", ("a", bytes(60_000))) for number in range(20)]
        assert (await post(client, files=files)).status_code == 503
    assert uploads.text.nbytes == 0
