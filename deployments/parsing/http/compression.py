"""`Content-Encoding` of answers: zstd or gzip, if the client accepts it and compressing saves time.

Compressing saves time for polygons and for 0/1 masks: gzip compresses 650 MB of their text a second and zstd 3,000 MB,
and the text becomes 150 to 1,300 times smaller. It saves none for logits: zstd compresses 145 MB of their text a second
and makes it 2.8 times smaller, gzip compresses 70 MB a second and makes it 2.4 times smaller, and a gigabit network
sends the plain text as fast.
(Measured on one core at level 1 of both, with the bundled model's masks of the example image at 1080p.)
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Literal, Protocol

import zstandard

from deployments.messages.answer_format import AnswerFormat
from deployments.messages.arrays import LOW_RES_SIZE
from deployments.messages.mask_set import MaskSet
from deployments.messages.pieces import BYTES_PER_BIT, BYTES_PER_LOGIT

Coding = Literal["zstd", "gzip"]
CODINGS: tuple[Coding, ...] = ("zstd", "gzip")


class Compressor(Protocol):
    """The interface that zlib's and zstandard's compressors share."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Takes bytes in, and returns the output so far; the rest comes with a later call."""
        ...

    def flush(self) -> bytes:
        """Returns the remaining bytes and the end of the stream."""
        ...


def choose_coding(accept_encoding: str, masks: MaskSet, answer_format: AnswerFormat) -> Coding | None:
    """Chooses the coding of an answer; None if the client accepts no coding, or if none pays.

    Args:
        accept_encoding: the request's header; "" if there is none.
        masks: the masks of the answer.
        answer_format: how they are written.
    """
    if not _pays(masks, answer_format):
        return None
    qualities = _qualities(accept_encoding)
    accepted = [coding for coding in CODINGS if qualities.get(coding, qualities.get("*", 0.0)) > 0]
    return max(accepted, key=lambda coding: qualities.get(coding, 0.0), default=None)


def _pays(masks: MaskSet, answer_format: AnswerFormat) -> bool:
    if answer_format.return_logits or not answer_format.traits.shrinks:
        return False
    height, width = masks.image_size
    # Full text ends with low-resolution logits; if they outweigh the masks, compression gains little.
    return not answer_format.traits.is_full_text or height * width * BYTES_PER_BIT >= LOW_RES_SIZE**2 * BYTES_PER_LOGIT


def _qualities(accept_encoding: str) -> Mapping[str, float]:
    """Parses how much a client prefers each coding, from 0 (not accepted) to 1 (RFC 9110, 12.5.3)."""
    qualities = {}
    for part in accept_encoding.lower().split(","):
        coding, _, parameter = part.partition(";")
        name, _, value = parameter.partition("=")
        try:
            qualities[coding.strip()] = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            qualities[coding.strip()] = 0.0
    return qualities


async def compress(
    texts: AsyncGenerator[bytes | memoryview, None], coding: Coding
) -> AsyncGenerator[bytes | memoryview, None]:
    """Compresses the texts of an answer's pieces into one stream."""
    compressor = _compressor(coding)
    async with aclosing(texts):
        async for text in texts:
            if output := await asyncio.to_thread(compressor.compress, text):
                yield output
    yield compressor.flush()


def _compressor(coding: Coding) -> Compressor:
    if coding == "zstd":
        return zstandard.ZstdCompressor(level=1).compressobj()
    # wbits of 31: a gzip header, and the largest window.
    return zlib.compressobj(1, zlib.DEFLATED, 31)
