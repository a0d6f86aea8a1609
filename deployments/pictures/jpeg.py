"""JPEG files that end too early: whether all their rows are there; and the colours of lossless ones."""

import io
import random
import re
import struct

from PIL import Image, ImageChops

from deployments.errors import InvalidImage

START_OF_IMAGE = b"\xff\xd8"
END_OF_IMAGE = b"\xff\xd9"
START_OF_SCAN = 0xDA
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}

# The next marker that is part of no compressed data: not a stuffed 0xFF, a restart, or padding.
MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")

NOISE_BYTES = 4096

MOST_SCANS = 500
"""Of a progressive file; programs write some ten. A scan of a few bytes takes as long as all blocks of the picture."""


def without_end(data: bytes) -> Image.Image | None:
    """Returns the decoded picture of a JPEG file that lacks its end marker; None if pixels are missing, too.

    Where compressed data end, libjpeg makes up the rest, without an error. So the file is decoded with several tails:
    if all blocks are there, a tail is skipped as what lies before the next marker; if one is missing, the tails show.
    """
    if not _has_all_scans(data):
        return None
    noise = random.Random(0)
    tails = [b"", *(bytes(noise.randrange(255) for _ in range(NOISE_BYTES)) for _ in range(2))]
    pictures = []
    for tail in tails:
        image = Image.open(io.BytesIO(data + tail + END_OF_IMAGE), formats=["JPEG"])
        image.load()
        pictures.append(image)
    first = pictures[0]
    same = all(ImageChops.difference(first, other).getbbox(alpha_only=False) is None for other in pictures[1:])
    return first if same else None


def check_scans(data: bytes) -> None:
    """Refuses a progressive file of very many scans, which would be decoded for hours.

    Raises:
        InvalidImage: there are more than MOST_SCANS.
    """
    # In compressed data no such bytes occur; in metadata, by chance or in thumbnails, some may.
    if data.count(bytes([0xFF, START_OF_SCAN])) > MOST_SCANS:
        raise InvalidImage(f"image: is a JPEG file of more than {MOST_SCANS} scans")


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """Returns the segments of a JPEG file in their order, each with its marker's second byte and its content."""
    found: list[tuple[int, bytes]] = []
    at = len(START_OF_IMAGE)
    while (marker := MARKER.search(data, at)) is not None and marker[0] != END_OF_IMAGE:
        at = marker.end()
        if at + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, at)
        found.append((marker[1][0], data[at + 2 : at + length]))
        at += max(2, length)
    return found


def is_lossless_ycbcr(image: Image.Image, header: bytes) -> bool:
    """Whether a JPEG file of three components is lossless and says that it holds YCbCr, which libjpeg does not convert.

    Args:
        image: the open file.
        header: the file as far as its first scan.
    """
    says_ycbcr = "jfif" in image.info or image.info.get("adobe_transform") == 1
    return says_ycbcr and image.mode == "RGB" and any(marker in LOSSLESS for marker, _ in segments(header))


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans that have begun cover each coefficient of each component to its last bit (T.81, G.1)."""
    components: list[int] = []
    missing: set[tuple[int, int]] = set()
    frame = 0
    for marker, content in segments(data):
        if marker in FRAMES and len(content) >= 6 and not components:
            frame = marker
            components = [content[at] for at in range(6, len(content), 3)]
            missing = {(component, index) for component in components for index in range(64)}
        elif marker == START_OF_SCAN and content:
            ids = [content[1 + 2 * index] for index in range(content[0]) if 1 + 2 * index < len(content)]
            first, last, bits = (*content[-3:],) if len(content) >= 4 else (0, 0, 0xFF)
            if frame not in PROGRESSIVE:
                first, last, bits = 0, 63, 0
            if bits & 15 == 0:
                missing -= {(component, index) for component in ids for index in range(first, last + 1)}
    return bool(components) and not missing
