"""Files that are no images, damaged images, and images that are larger than they look."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from harness.images import encoded, picture


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG of 1-bit grey with these compressed pixels, right checksums included."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def png_bomb(width: int, height: int) -> bytes:
    """A complete, all black PNG: a few kilobytes, whatever its size."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    return png(width, height, b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush())


def icon(image: bytes) -> bytes:
    """A Windows icon that says it is 256×256 and holds this PNG."""
    directory = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(image), 22)
    return directory + image


def iptc(image: bytes) -> bytes:
    """An IPTC record that holds this image, of whatever format."""

    def tag(record: int, dataset: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, dataset, len(data)) + data

    size = tag(3, 20, struct.pack(">H", 8)) + tag(3, 30, struct.pack(">H", 8))
    return tag(3, 60, b"\x01\x00") + tag(3, 65, b"\x00") + size + tag(3, 120, b"\x05") + tag(8, 10, image)


def flipped(data: bytes, start: float = 0.3, stop: float = 0.6) -> bytes:
    """The file with all bits of its middle flipped."""
    first, last = int(len(data) * start), int(len(data) * stop)
    return data[:first] + bytes(byte ^ 0xFF for byte in data[first:last]) + data[last:]


def half(kind: str) -> Callable[[], bytes]:
    """The first half of an image file."""

    def make() -> bytes:
        data = encoded(picture(300, 200), kind)
        return data[: len(data) // 2]

    return make


NOT_IMAGES: dict[str, Callable[[], bytes]] = {
    "an empty file": lambda: b"",
    "one byte": lambda: b"\x89",
    "text": lambda: b"this is not an image\n" * 50,
    "html": lambda: b"<!doctype html><html><body><h1>404 Not Found</h1></body></html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><circle r="5"/></svg>',
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
    "postscript inside iptc": lambda: iptc(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"),
    "a pdf": lambda: b"%PDF-1.7\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n",
    "a zip": lambda: b"PK\x05\x06" + bytes(18),
    "a pickle": lambda: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01K\x02e.",
    "random bytes": lambda: np.random.default_rng(0).bytes(10_000),
    "a video's header": lambda: b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(2000),
    "half a png": half("PNG"),
    "half a jpeg": half("JPEG"),
    "half a gif": half("GIF"),
    "half a webp": half("WEBP"),
    "half a tiff": half("TIFF"),
    "half a bmp": half("BMP"),
    "half a jpeg 2000": half("JPEG2000"),
    "a png of flipped bits": lambda: flipped(encoded(picture(300, 200))),
    "a webp of flipped bits": lambda: flipped(encoded(picture(300, 200), "WEBP", lossless=True), 0.0, 0.1),
    "a png's signature alone": lambda: b"\x89PNG\r\n\x1a\n",
    "a png of zero width": lambda: png(0, 10),
    "a png without pixels": lambda: png(4000, 4000),
}
"""What is answered with 400."""

TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "a png bomb of 20000×20000": lambda: png_bomb(20_000, 20_000),
    "a png's header of 10000×10000": lambda: png(10_000, 10_000),
    "a png's header of 2147483647×2147483647": lambda: png(2**31 - 1, 2**31 - 1),
    "a gif's header of 65535×65535": lambda: (
        b"GIF89a\xff\xff\xff\xff\x00\x00\x00" + b",\0\0\0\0\xff\xff\xff\xff\0\2\0;"
    ),
    "a png bomb inside an icon": lambda: icon(png_bomb(20_000, 20_000)),
    "21 MiB": lambda: encoded(Image.new("RGB", (8, 8))) + bytes(21 * 2**20),
}
"""What is answered with 413."""
