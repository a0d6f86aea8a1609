"""ResponseEncoder, the CPU deployment: from low-resolution logits to the bytes of an answer."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from deployments.encoding import json_text, npz, png, polygons, rle
from deployments.messages.answer_format import AnswerFormat, ResponseFormat
from deployments.messages.pieces import Piece, Text

WRITERS: dict[ResponseFormat, Callable[[Any, AnswerFormat], bytes]] = {
    "json": json_text.write,
    "rle": rle.write,
    "polygons": polygons.write,
    "png": png.write,
    "npz": npz.write,
}
"""What writes a piece of each format: a Band where the format is cut by rows, else a Part."""


class ResponseEncoder:
    """Writes answers piece by piece. Stateless: a piece that was lost with its replica is simply asked for again."""

    async def encode(self, piece: Piece, answer_format: AnswerFormat) -> Text:
        """Writes a piece of an answer."""
        text = await asyncio.to_thread(encode_piece, piece, answer_format)
        return np.frombuffer(text, np.uint8)


def encode_piece(piece: Piece, answer_format: AnswerFormat) -> bytes:
    """The bytes of a piece."""
    return WRITERS[answer_format.response_format](piece, answer_format)
