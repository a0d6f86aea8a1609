"""Pulls an answer from ResponseEncoder: two pieces are in flight, and the next is requested once the first is sent."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING, Any

from deployments.messages.answer_format import AnswerFormat, TrackFormat
from deployments.messages.mask_set import MaskSet
from deployments.messages.pieces import Piece, Text, cut, text_bytes
from deployments.messages.track import FrameMasks
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_calls import ModelCalls

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

PIECES_IN_FLIGHT = 2


class EncoderCalls:
    """Calls ResponseEncoder on behalf of RequestParser.

    Args:
        encoder: the handle of ResponseEncoder.
        calls: provides the retries, and the config with the size of a band.
    """

    def __init__(self, encoder: "DeploymentHandle[Any]", calls: ModelCalls) -> None:
        self._encoder = encoder
        self._calls = calls

    def window_bytes(self, masks: MaskSet, answer_format: AnswerFormat) -> int:
        """Estimates the most bytes of an answer that are in memory: the pieces in flight, and the one being sent."""
        whole = text_bytes(masks, answer_format)
        if answer_format.traits.cut_by == "rows":
            return min(whole, (PIECES_IN_FLIGHT + 1) * self._calls.config.band_bytes)
        return whole

    async def pull(
        self, masks: MaskSet, answer_format: AnswerFormat, deadline: Deadline
    ) -> AsyncGenerator[memoryview, None]:
        """Yields the bytes of an answer.

        Args:
            masks: the model's masks.
            answer_format: how to write them.
            deadline: when the first two pieces must be written; each later piece has `request_timeout_s` of its own.
        """
        in_flight: deque[asyncio.Task[memoryview]] = deque()
        try:
            for piece in cut(masks, answer_format, self._calls.config.band_bytes):
                in_flight.append(asyncio.create_task(self._text(piece, answer_format, deadline)))
                if len(in_flight) == PIECES_IN_FLIGHT:
                    yield await in_flight.popleft()
                    # Each further piece gets the whole time again: a client may take longer to read its answer.
                    deadline = Deadline(self._calls.config.request_timeout_s)
            while in_flight:
                yield await in_flight.popleft()
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    async def frame(self, masks: FrameMasks, track_format: TrackFormat, deadline: Deadline) -> memoryview:
        """Returns a video's frame as it is written: a JSON object, or a PNG.

        Raises:
            Unavailable: the encoders are overloaded, or the deadline has passed.
        """
        send = partial(self._encoder.encode_frame.remote, masks, track_format)
        text: Text = await self._calls.retries.call(send, deadline, "ResponseEncoder")
        return text.data

    async def _text(self, piece: Piece, answer_format: AnswerFormat, deadline: Deadline) -> memoryview:
        send = partial(self._encoder.encode.remote, piece, answer_format)
        text: Text = await self._calls.retries.call(send, deadline, "ResponseEncoder")
        return text.data
