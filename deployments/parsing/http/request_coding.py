"""`Content-Encoding` of requests: unpacks gzip, deflate and zstd, in pieces, so that no bomb fills the memory."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

import zstandard

from deployments.errors import InvalidRequest, UnsupportedMediaType

PIECE_BYTES = 2**18
"""About the most that is unpacked at a time."""

# A zstd block of 4 bytes may stand for 128 KiB. What this many bytes can stand for still fits into the memory.
ZSTD_STEP_BYTES = 512

# 8 MiB is what every decoder of HTTP's zstd must have (RFC 9659); a larger window would be the client's to choose.
ZSTD_WINDOW_BYTES = 2**23

# A gzip file may have several members, such as those of parallel compressors. Empty ones cost time and no bytes.
MOST_MEMBERS = 1000


class Unpacker(Protocol):
    """Unpacks a body of one coding."""

    ended: bool
    """Whether what was unpacked so far is complete."""

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """Takes some of the body, and yields what it stands for, in pieces of about PIECE_BYTES."""
        ...


class ZlibUnpacker:
    """Unpacks gzip, or deflate with the header of zlib or, as some clients send it, without.

    Args:
        is_gzip: whether the coding is gzip.
    """

    def __init__(self, is_gzip: bool) -> None:
        self.ended = False
        self._is_gzip = is_gzip
        self._members = 0
        self._stream: zlib._Decompress | None = None

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """See Unpacker; raises zlib.error where the data are not of this coding."""
        while data:
            if self._stream is None or self._stream.eof:
                self._begin(data)
            assert self._stream is not None
            piece = self._stream.decompress(data, PIECE_BYTES)
            while piece:
                yield piece
                data = self._stream.unconsumed_tail
                # Without input too: what did not fit into the last piece comes now.
                piece = self._stream.decompress(data, PIECE_BYTES)
            self.ended = self._stream.eof
            data = self._stream.unused_data

    def _begin(self, data: bytes) -> None:
        self._members += 1
        if self._members > (MOST_MEMBERS if self._is_gzip else 1):
            raise zlib.error("there are data after the end")
        # 31: gzip; 15: zlib, whose first byte has 8 in its lower half; -15: neither header nor checksum.
        window = 31 if self._is_gzip else 15 if data[0] & 0x0F == 8 else -15
        self._stream = zlib.decompressobj(window)


class ZstdUnpacker:
    """Unpacks zstd, one frame."""

    def __init__(self) -> None:
        self.ended = False
        self._stream = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """See Unpacker; raises ZstdError where the data are not zstd, or go on after the frame."""
        pieces: list[bytes] = []
        for start in range(0, len(data), ZSTD_STEP_BYTES):
            if self.ended:
                raise zstandard.ZstdError("there are data after the end")
            pieces.append(self._stream.decompress(data[start : start + ZSTD_STEP_BYTES]))
            self.ended = self._stream.eof
            if self._stream.unused_data:
                raise zstandard.ZstdError("there are data after the end")
            if sum(map(len, pieces)) >= PIECE_BYTES:
                yield b"".join(pieces)
                pieces = []
        yield b"".join(pieces)


UNPACKERS: dict[str, Callable[[], Unpacker]] = {
    "gzip": lambda: ZlibUnpacker(is_gzip=True),
    "x-gzip": lambda: ZlibUnpacker(is_gzip=True),
    "deflate": lambda: ZlibUnpacker(is_gzip=False),
    "zstd": ZstdUnpacker,
}


def unpacked(stream: AsyncIterator[bytes], content_encoding: str) -> AsyncIterator[bytes]:
    """Returns a request's body without its coding. It is unpacked in threads, while it arrives.

    Args:
        stream: the body.
        content_encoding: the request's header; "" if there is none.

    Raises:
        UnsupportedMediaType: the coding is another one, or there are several.
        InvalidRequest: while the body is read: it is not of this coding, or is cut off.
    """
    codings = [coding for coding in _items(content_encoding) if coding not in ("", "identity")]
    if not codings:
        return stream
    if len(codings) > 1 or codings[0] not in UNPACKERS:
        raise UnsupportedMediaType(
            f"Content-Encoding: {', '.join(codings)[:100]!r} is not supported; use gzip, deflate or zstd, or none"
        )
    return _unpacked(stream, codings[0])


def _items(header: str) -> list[str]:
    return [item.strip().lower() for item in header.split(",")]


async def _unpacked(stream: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    unpacker = UNPACKERS[coding]()
    try:
        async for data in stream:
            pieces = unpacker.unpack(data)
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
    except (zlib.error, zstandard.ZstdError) as error:
        raise InvalidRequest(f"body: is not well-formed {coding}: {error}") from error
    if not unpacker.ended:
        raise InvalidRequest(f"body: is not well-formed {coding}: it is cut off")
