"""Sending an answer: the budget, clients that stall, what is told before the first byte and what is not."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from deployments.errors import Overloaded, Unavailable
from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.http.streaming import CHUNK_BYTES, Delivery, StreamedAnswer
from deployments.parsing.stage_times import StageTimes
from tests.loops import settled

MB = 1_000_000


class Client:
    """The other end of a response: takes what it is sent, until it stops."""

    def __init__(self, stops_after: float = float("inf")) -> None:
        self.messages: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self._stops_after = stops_after

    async def send(self, message: Any) -> None:
        if len(self.body) >= self._stops_after:
            await asyncio.Event().wait()
        self.messages.append(message)

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False


class Bands:
    """An answer of several bands; counts those that were pulled."""

    def __init__(self, count: int, size: int = MB, fails_at: int = -1) -> None:
        self.pulled = 0
        self.closed = False
        self._count, self._size, self._fails_at = count, size, fails_at

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            for index in range(self._count):
                if index == self._fails_at:
                    raise Unavailable("the encoders died")
                self.pulled += 1
                yield bytes([index]) * self._size
        finally:
            self.closed = True


def delivery(budget: ByteBudget, share: int = MB, **changes: Any) -> Delivery:
    settings = {"wait_s": 5.0, "stall_timeout_s": 5.0, "read_timeout_s": 5.0, "flow_controlled": True, **changes}
    return Delivery(budget=budget, share=share, **settings)


def response(bands: Bands, how: Delivery) -> StreamedAnswer:
    timing = StageTimes()
    timing.add("parse", 0.0123)
    return StreamedAnswer(bands(), how, timing, {"X-Image-Id": "abc"})


async def answer(bands: Bands, client: Client, how: Delivery) -> None:
    await response(bands, how)({"type": "http"}, client.receive, client.send)


async def test_the_client_gets_headers_and_every_band() -> None:
    client, bands = Client(), Bands(3)
    await answer(bands, client, delivery(ByteBudget(10 * MB, "too many answers")))
    assert client.messages[0]["status"] == 200
    headers = dict(client.messages[0]["headers"])
    assert headers[b"x-image-id"] == b"abc"
    assert headers[b"content-type"] == b"application/json"
    assert b"content-length" not in headers
    timing = headers[b"server-timing"].decode()
    assert [part.split(";")[0] for part in timing.split(", ")] == ["parse", "queue", "encode"]
    assert "parse;dur=12.3" in timing
    assert client.body == b"".join(bytes([index]) * MB for index in range(3))
    assert client.complete
    # The server keeps what it was handed and the client has not taken: little, however large a band is.
    assert max(len(message.get("body", b"")) for message in client.messages) == CHUNK_BYTES


async def test_what_fails_before_the_first_byte_is_raised_before_the_status_is_sent() -> None:
    client = Client()
    with pytest.raises(Unavailable):
        await answer(Bands(3, fails_at=0), client, delivery(ByteBudget(MB, "too many answers")))
    assert client.messages == []


async def test_what_fails_later_leaves_the_body_visibly_incomplete() -> None:
    client = Client()
    with pytest.raises(Unavailable):
        await answer(Bands(3, fails_at=1), client, delivery(ByteBudget(MB, "too many answers")))
    assert client.body
    assert not client.complete


async def test_a_client_that_does_not_read_holds_up_the_pulling_and_is_dropped_in_the_end() -> None:
    budget, bands = ByteBudget(10 * MB, "too many answers"), Bands(50)
    with pytest.raises(ClientDisconnect):
        await answer(bands, Client(stops_after=MB), delivery(budget, stall_timeout_s=0.05))
    assert bands.pulled <= 2
    assert bands.closed
    # Its share is free again.
    await answer(Bands(1), Client(), delivery(budget, share=10 * MB))


async def test_clients_that_do_not_read_cannot_take_more_than_the_budget() -> None:
    budget = ByteBudget(10 * MB, "too many answers")
    held = [asyncio.create_task(answer(Bands(9), Client(stops_after=MB), delivery(budget, 5 * MB))) for _ in "ab"]
    await settled()
    bands, client = Bands(1), Client()
    with pytest.raises(Overloaded, match="too many answers"):
        await answer(bands, client, delivery(budget, 5 * MB, wait_s=0.05))
    assert (bands.pulled, client.messages) == (0, [])
    late = Client()
    waiting = asyncio.create_task(answer(Bands(1), late, delivery(budget, 5 * MB)))
    await settled()
    assert late.messages == []
    held[0].cancel()
    await waiting
    assert late.complete
    held[1].cancel()


async def test_without_flow_control_the_share_is_held_until_the_client_has_the_answer() -> None:
    budget, client = ByteBudget(MB, "too many answers"), Client()
    first = asyncio.create_task(answer(Bands(1), client, delivery(budget, flow_controlled=False)))
    await settled()
    # Sent, but that only means that something between has taken it.
    assert client.complete
    assert not first.done()
    second = asyncio.create_task(answer(Bands(1), Client(), delivery(budget)))
    await settled()
    assert not second.done()
    client.gone.set()
    await asyncio.gather(first, second)


async def test_an_answer_larger_than_the_budget_goes_alone() -> None:
    budget = ByteBudget(MB, "too many answers")
    order: list[str] = []

    async def hold(name: str, nbytes: int, seconds: float) -> None:
        async with budget.share(nbytes, 5):
            order.append(f"+{name}")
            await asyncio.sleep(seconds)
            order.append(f"-{name}")

    await asyncio.gather(hold("large", 99 * MB, 0.02), hold("small", 10, 0.01), hold("other", 10, 0.01))
    # And the small ones together, in their order.
    assert order[:4] == ["+large", "-large", "+small", "+other"]


async def test_a_large_answer_is_not_overtaken_for_ever() -> None:
    budget = ByteBudget(10, "too many answers")
    order: list[str] = []

    async def hold(name: str, nbytes: int) -> None:
        async with budget.share(nbytes, 5):
            order.append(name)
            await asyncio.sleep(0.01)

    await asyncio.gather(hold("a", 6), hold("large", 10), hold("b", 4), hold("c", 4))
    assert order == ["a", "large", "b", "c"]


async def test_who_leaves_the_queue_gives_its_turn_away() -> None:
    budget = ByteBudget(10, "too many answers")
    async with budget.share(10, 5):
        leaving = asyncio.create_task(answer(Bands(1), Client(), delivery(budget, 10)))
        staying = asyncio.create_task(answer(Bands(1), Client(), delivery(budget, 10)))
        await settled()
        leaving.cancel()
    await staying


async def test_a_lower_limit_counts_for_those_who_come_after_it() -> None:
    budget = ByteBudget(10, "too many answers")
    async with budget.share(8, 5):
        budget.set_limit(4)
        with pytest.raises(Overloaded):
            async with budget.share(4, 0.02):
                pass
    async with budget.share(8, 1), asyncio.timeout(1):
        pass


async def test_a_client_that_stops_before_the_very_end_is_dropped_too() -> None:
    budget = ByteBudget(MB, "too many answers")
    # All but the empty message that ends the answer, for which the server waits until the rest is taken.
    with pytest.raises(ClientDisconnect):
        await answer(Bands(2), Client(stops_after=2 * MB), delivery(budget, stall_timeout_s=0.05))
    await answer(Bands(1), Client(), delivery(budget))


async def test_without_flow_control_a_share_is_not_held_for_ever() -> None:
    budget = ByteBudget(MB, "too many answers")
    with pytest.raises(ClientDisconnect):
        await answer(Bands(1), Client(), delivery(budget, flow_controlled=False, read_timeout_s=0.05))
    await answer(Bands(1), Client(), delivery(budget))


async def test_who_leaves_in_the_moment_of_its_turn_gives_its_share_back() -> None:
    budget = ByteBudget(10, "too many answers")
    first = budget.share(10, 5)
    await first.__aenter__()
    leaving = asyncio.create_task(answer(Bands(1), Client(), delivery(budget, 10)))
    await settled()
    await first.__aexit__(None, None, None)
    # Admitted, but it does not know yet.
    leaving.cancel()
    await settled()
    assert leaving.cancelled()
    await answer(Bands(1), Client(), delivery(budget, 10, wait_s=0.05))


async def test_a_higher_limit_lets_those_in_who_wait() -> None:
    budget = ByteBudget(10, "too many answers")
    async with budget.share(10, 5):
        waiting = asyncio.create_task(answer(Bands(1), Client(), delivery(budget, 10)))
        await settled()
        assert not waiting.done()
        budget.set_limit(20)
        await waiting
