"""Sending an answer while it is being written: bands, those that nobody reads, the first byte's time."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.http.server_timing import HEADER, server_timing
from deployments.parsing.stage_times import StageTimes

CHUNK_BYTES = 256 * 1024
"""Handed to the server at a time, which keeps all of it until the client has taken it, or is given up."""


@dataclass(frozen=True)
class Delivery:
    """How an answer is sent.

    Attributes:
        budget: what it takes its share of.
        share: bytes of it that may be on their way at the same time.
        wait_s: how long it may wait for its share.
        stall_timeout_s: how long the client may take nothing.
        read_timeout_s: without flow control, how long it may take for everything.
        flow_controlled: sending waits for the client. Otherwise something between takes everything at once, and only
            the end of the exchange tells that the client has it.
    """

    budget: ByteBudget
    share: int
    wait_s: float
    stall_timeout_s: float
    read_timeout_s: float
    flow_controlled: bool


class BandedResponse(StreamingResponse):
    """An answer that is written while the client reads it.

    What goes wrong before the first byte is still answered with a status. Later the connection is closed.

    Args:
        bands: the body, piece by piece.
        delivery: how it is sent.
        timing: what is known by now of where the time went; the rest is added, and the header written.
        headers: more headers.
        media_type: the Content-Type.
    """

    def __init__(
        self,
        bands: AsyncGenerator[bytes | memoryview, None],
        delivery: Delivery,
        timing: StageTimes,
        headers: dict[str, str],
        media_type: str = "application/json",
    ) -> None:
        super().__init__(bands, media_type=media_type, headers=headers)
        self._bands = bands
        self._delivery = delivery
        self._timing = timing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it. Serve itself watches whether the client goes away, and cancels this."""
        delivery = self._delivery
        asked_at = time.perf_counter()
        async with aclosing(self._bands), delivery.budget.share(delivery.share, delivery.wait_s):
            self._timing.add("queue", time.perf_counter() - asked_at)
            await self._send(send)
            if not delivery.flow_controlled:
                await _within(delivery.read_timeout_s, _read_by_client(receive))

    async def _send(self, send: Send) -> None:
        with self._timing.measure("encode"):
            first = await anext(self._bands)
        self.headers[HEADER] = server_timing(self._timing)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Too late for the header, but not for metrics and log.
        with self._timing.measure("send"):
            await self._send_body(send, first)
            async for band in self._bands:
                await self._send_body(send, band)
            # It waits too: for the last piece to be taken.
            await self._send_piece(send, b"", more=False)

    async def _send_body(self, send: Send, band: bytes | memoryview) -> None:
        # What something between takes at once may have to be pickled on its way.
        for chunk in _chunks(band) if self._delivery.flow_controlled else (bytes(band),):
            await self._send_piece(send, chunk, more=True)

    async def _send_piece(self, send: Send, piece: bytes | memoryview, more: bool) -> None:
        message = {"type": "http.response.body", "body": piece, "more_body": more}
        await _within(self._delivery.stall_timeout_s, send(message))


async def _within(seconds: float, step: Awaitable[None]) -> None:
    """A step that the client must do its part in; ClientDisconnect if it does not in time."""
    try:
        async with asyncio.timeout(seconds):
            await step
    except TimeoutError as error:
        raise ClientDisconnect from error


def _chunks(band: bytes | memoryview) -> Iterator[bytes | memoryview]:
    for start in range(0, len(band), CHUNK_BYTES):
        yield band[start : start + CHUNK_BYTES]


async def _read_by_client(receive: Receive) -> None:
    """Waits until the exchange is over, which the server says as it says that a client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
