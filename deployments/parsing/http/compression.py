"""`Content-Encoding` of answers: zstd or gzip, where the client accepts it and it pays.

It pays for polygons, and for 0/1 masks: on one core gzip takes in 650 MB of their text a second, zstd 3,000, and makes
it 150 to 1,300 times smaller. It does not pay for logits, whose text zstd makes 2.8 times smaller at 145 MB a second,
gzip 2.4 times at 70: a gigabit network is as fast. (Level 1 of both, the bundled model's masks of the example image at
1080p, one core.)
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
    """What zlib's and zstandard's compressors have in common."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Takes some bytes in; what comes out may come later."""
        ...

    def flush(self) -> bytes:
        """What is left, and the end."""
        ...


def choose_coding(accept_encoding: str, masks: MaskSet, answer_format: AnswerFormat) -> Coding | None:
    """The coding for an answer, or None: the client takes none, or none pays.

    Args:
        accept_encoding: the request's header; "" if there is none.
        masks: what is answered.
        answer_format: how it is written.
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
    # Full text ends with low-resolution logits; where they outweigh the masks, little would be gained.
    return not answer_format.traits.is_full_text or height * width * BYTES_PER_BIT >= LOW_RES_SIZE**2 * BYTES_PER_LOGIT


def _qualities(accept_encoding: str) -> Mapping[str, float]:
    """How much a client likes each coding, from 0 for not at all to 1 (RFC 9110, 12.5.3)."""
    qualities = {}
    for part in accept_encoding.lower().split(","):
        coding, _, parameter = part.partition(";")
        name, _, value = parameter.partition("=")
        try:
            qualities[coding.strip()] = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            qualities[coding.strip()] = 0.0
    return qualities


async def compressed(
    bands: AsyncGenerator[bytes | memoryview, None], coding: Coding
) -> AsyncGenerator[bytes | memoryview, None]:
    """The bands in one stream of the coding."""
    compressor = _compressor(coding)
    async with aclosing(bands):
        async for band in bands:
            if part := await asyncio.to_thread(compressor.compress, band):
                yield part
    yield compressor.flush()


def _compressor(coding: Coding) -> Compressor:
    if coding == "zstd":
        return zstandard.ZstdCompressor(level=1).compressobj()
    # 31: a gzip header, and the largest window.
    return zlib.compressobj(1, zlib.DEFLATED, 31)
