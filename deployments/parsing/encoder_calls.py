"""Pulling an answer's bytes from ResponseEncoder, piece by piece: two in flight, and no more until they are sent."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from deployments.messages.answer_format import AnswerFormat, Masks
from deployments.messages.pieces import LOGITS_TEXT_BYTES, Text, cut_band, cut_parts, num_rows, row_bytes
from deployments.messages.segmentation import Segmentation
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_calls import ModelCalls

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

PIECES_IN_FLIGHT = 2

Piece: TypeAlias = Callable[[], Awaitable[Any]]
"""Sends the request for one piece."""


class EncoderCalls:
    """What RequestParser asks of ResponseEncoder.

    Args:
        encoder: its handle.
        calls: sends requests, and has the size of a band in its config.
    """

    def __init__(self, encoder: "DeploymentHandle[Any]", calls: ModelCalls) -> None:
        self._encoder = encoder
        self._calls = calls

    def answer_bytes(self, masks: Masks, form: AnswerFormat) -> int:
        """About how long an answer will be."""
        if form.response_format == "json":
            assert isinstance(masks, Segmentation)
            return num_rows(masks) * row_bytes(masks, form.return_logits)
        # No format packs a mask into more than what it is made of, noise apart.
        logits_as_text = form.return_logits and form.traits.by_object
        return masks.low_res_logits.nbytes + (LOGITS_TEXT_BYTES * masks.num_masks if logits_as_text else 0)

    def window_bytes(self, masks: Masks, form: AnswerFormat) -> int:
        """The most of an answer that is here at a time: the pieces that are pulled, and the one that is sent."""
        whole = self.answer_bytes(masks, form)
        if form.response_format == "json":
            return min(whole, (PIECES_IN_FLIGHT + 1) * self._calls.config.band_bytes)
        return whole

    def pull(self, masks: Masks, form: AnswerFormat, deadline: Deadline) -> AsyncGenerator[memoryview, None]:
        """The bytes of an answer.

        Args:
            masks: what the model answered.
            form: how to write them.
            deadline: for the first pieces; each further one has as long as a request.
        """
        if form.response_format == "json":
            assert isinstance(masks, Segmentation)
            return self._pull(self._bands(masks, form.return_logits), deadline)
        return self._pull(self._parts(masks, form), deadline)

    def _bands(self, segmentation: Segmentation, return_logits: bool) -> Iterator[Piece]:
        rows = num_rows(segmentation)
        count = max(1, self._calls.config.band_bytes // row_bytes(segmentation, return_logits))
        for start in range(0, rows, count):
            band = cut_band(segmentation, start, min(start + count, rows))
            yield partial(self._encoder.encode_band.remote, band, return_logits)

    def _parts(self, masks: Masks, form: AnswerFormat) -> Iterator[Piece]:
        for part in cut_parts(masks, form):
            yield partial(self._encoder.encode_part.remote, part, form)

    async def _pull(self, pieces: Iterator[Piece], deadline: Deadline) -> AsyncGenerator[memoryview, None]:
        in_flight: deque[asyncio.Task[memoryview]] = deque()
        try:
            for piece in pieces:
                in_flight.append(asyncio.create_task(self._text(piece, deadline)))
                if len(in_flight) == PIECES_IN_FLIGHT:
                    yield await in_flight.popleft()
                    # A client may read for longer than a request may wait for its answer.
                    deadline = Deadline(self._calls.config.request_timeout_s)
            while in_flight:
                yield await in_flight.popleft()
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    async def _text(self, piece: Piece, deadline: Deadline) -> memoryview:
        text: Text = await self._calls.call(piece, deadline, "ResponseEncoder")
        return text.data
