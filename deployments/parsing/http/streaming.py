"""Sends an answer while it is being written: within a byte budget, no faster than the client reads, and timed."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.deadline import Deadline
from deployments.parsing.http.flow_control import is_request_flow_controlled
from deployments.parsing.http.server_timing import HEADER, server_timing
from deployments.parsing.stage_times import StageTimes
from deployments.settings import RequestParserConfig

CHUNK_BYTES = 256 * 1024
"""Bytes that are handed to the server at a time. The server keeps a chunk until the client has taken all of it."""


@dataclass(frozen=True)
class Delivery:
    """How an answer is sent.

    Attributes:
        budget: the byte budget that the answer takes a share of.
        share: the most bytes of the answer that are in memory at the same time.
        wait_s: seconds that the answer may wait for its share.
        stall_timeout_s: seconds after which a client that reads nothing is disconnected.
        read_timeout_s: without flow control, the seconds that the client has for reading the whole answer.
        flow_controlled: whether sending waits for the client. If not, Serve takes in everything at once, and only the
            end of the exchange shows that the client has read it.
    """

    budget: ByteBudget
    share: int
    wait_s: float
    stall_timeout_s: float
    read_timeout_s: float
    flow_controlled: bool

    @classmethod
    def of_request(cls, config: RequestParserConfig, budget: ByteBudget, share: int, deadline: Deadline) -> "Delivery":
        """Returns how the answer to the request at hand is sent; see the attributes.

        Args:
            config: has the time-outs.
            budget: the byte budget.
            share: bytes.
            deadline: the request's.
        """
        return cls(
            budget=budget,
            share=share,
            wait_s=deadline.step(config.max_wait_s).remaining(),
            stall_timeout_s=config.answer_stall_timeout_s,
            read_timeout_s=config.request_timeout_s,
            flow_controlled=is_request_flow_controlled(),
        )


class StreamedAnswer(StreamingResponse):
    """An answer that is written while the client reads it.

    An error before the first byte is answered with a status. A later error closes the connection.

    Args:
        texts: the body, piece by piece.
        delivery: how the answer is sent.
        timing: the seconds of the stages so far; sending adds the later stages and the `Server-Timing` header.
        headers: more headers.
        media_type: the Content-Type.
    """

    def __init__(
        self,
        texts: AsyncGenerator[bytes | memoryview, None],
        delivery: Delivery,
        timing: StageTimes,
        headers: dict[str, str],
        media_type: str = "application/json",
    ) -> None:
        super().__init__(texts, media_type=media_type, headers=headers)
        self._texts = texts
        self._delivery = delivery
        self._timing = timing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer. If the client goes away, Serve cancels this call."""
        delivery = self._delivery
        asked_at = time.perf_counter()
        async with aclosing(self._texts), delivery.budget.share(delivery.share, delivery.wait_s):
            self._timing.add("queue", time.perf_counter() - asked_at)
            await self._send(send)
            if not delivery.flow_controlled:
                await _within(delivery.read_timeout_s, _read_by_client(receive))

    async def _send(self, send: Send) -> None:
        with self._timing.measure("encode"):
            first = await anext(self._texts)
        self.headers[HEADER] = server_timing(self._timing)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Measured too late for the header, but in time for metrics and log.
        with self._timing.measure("send"):
            await self._send_body(send, first)
            async for text in self._texts:
                await self._send_body(send, text)
            # Sending the end of the body waits too: until the client has taken the last chunk.
            await self._send_chunk(send, b"", more=False)

    async def _send_body(self, send: Send, text: bytes | memoryview) -> None:
        # Without flow control, Serve may have to pickle the text, which is possible with bytes alone.
        for chunk in _chunks(text) if self._delivery.flow_controlled else (bytes(text),):
            await self._send_chunk(send, chunk, more=True)

    async def _send_chunk(self, send: Send, chunk: bytes | memoryview, more: bool) -> None:
        message = {"type": "http.response.body", "body": chunk, "more_body": more}
        await _within(self._delivery.stall_timeout_s, send(message))


async def _within(seconds: float, step: Awaitable[None]) -> None:
    """Awaits a step that depends on the client; raises ClientDisconnect if the client does not do its part in time."""
    try:
        async with asyncio.timeout(seconds):
            await step
    except TimeoutError as error:
        raise ClientDisconnect from error


def _chunks(text: bytes | memoryview) -> Iterator[bytes | memoryview]:
    for start in range(0, len(text), CHUNK_BYTES):
        yield text[start : start + CHUNK_BYTES]


async def _read_by_client(receive: Receive) -> None:
    """Waits until the exchange is over: the server then reports `http.disconnect`, as if the client had gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
