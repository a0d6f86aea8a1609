"""Reads a picture from a file of any kind: finds out the kind by the first bytes, checks the size, then decodes it."""

from dataclasses import dataclass
from typing import BinaryIO

from deployments.errors import InvalidImage
from deployments.messages.georeference import Georeference, NoGeoreference
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import (
    camera_raw,
    deep_jpeg,
    dicom,
    geotiff,
    heif,
    jxl,
    kinds,
    netpbm,
    pillow_reader,
    png16,
    rarer_pillow_reader,
    tiff,
)
from deployments.pictures.isolated import IsolatedReader
from deployments.pictures.pillow_guard import pillow_guard
from deployments.pictures.raster import Picture
from deployments.pictures.steps import ReaderModule, facts_of, picture_of

READERS: dict[str, ReaderModule | IsolatedReader] = {
    "raw": IsolatedReader(camera_raw, "a camera raw file"),
    "tiff": IsolatedReader(tiff, "a TIFF file"),
    "png16": png16,
    "netpbm": IsolatedReader(netpbm, "a PGM or PPM file"),
    "dicom": IsolatedReader(dicom, "a DICOM file"),
    "heif": IsolatedReader(heif, "a HEIC or AVIF picture"),
    "jxl": IsolatedReader(jxl, "a JPEG XL picture"),
    "deep_jpeg": IsolatedReader(deep_jpeg, deep_jpeg.KIND),
    "pillow": pillow_reader,
    "rarer": IsolatedReader(rarer_pillow_reader, "a picture"),
}
"""In the order in which they are asked. Camera raw files that are TIFF files too are told before."""


ONLY_TIFF = NoGeoreference("only those of TIFF files are read")


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture before it is decoded.

    Attributes:
        kind: the name of its reader.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
        is_deep: whether its samples may have more than 8 bits.
        place: where it lies on a map.
    """

    kind: str
    width: int
    height: int
    is_deep: bool
    place: Georeference | NoGeoreference = ONLY_TIFF


def inspect(file: BinaryIO, options: PictureOptions, max_pixels: int, timeout_s: float | None = None) -> PictureFacts:
    """Reads a picture's header.

    Args:
        file: can seek.
        options: which page is meant.
        max_pixels: the most pixels that are accepted.
        timeout_s: how long a decoder in a process of its own may take; None is its own limit.

    Raises:
        InvalidImage: the file is damaged, or of a kind that is not read.
        InvalidRequest: it has no such page.
        TooLarge: it has too many pixels.
        Unavailable: the decoders in processes of their own are busy, or the time is over.
    """
    kind, reader = _reader_of(file)
    if isinstance(reader, IsolatedReader):
        if kind == "tiff":
            # One call for both: to send a file to a helper twice costs more than to read these tags.
            return PictureFacts(kind, *reader.run(geotiff.placed_facts_of, file, options, max_pixels, timeout_s))
        return PictureFacts(kind, *reader.facts(file, options, max_pixels, timeout_s))
    with pillow_guard(max_pixels):
        return PictureFacts(kind, *facts_of(reader, file, options, max_pixels))


def read(file: BinaryIO, options: PictureOptions, max_pixels: int, timeout_s: float | None = None) -> Picture:
    """Decodes a picture.

    Args:
        file: can seek.
        options: the page, the bands, and how they are shown.
        max_pixels: the most pixels that are accepted.
        timeout_s: see `inspect`.

    Raises:
        InvalidImage: the file is damaged or truncated, or of a kind that is not read.
        InvalidRequest: it has no such page or band.
        TooLarge: it has too many pixels, or there is not enough memory for them.
        Unavailable: see `inspect`.
    """
    _, reader = _reader_of(file)
    if isinstance(reader, IsolatedReader):
        return reader.picture(file, options, max_pixels, timeout_s)
    with pillow_guard(max_pixels):
        return picture_of(reader, file, options, max_pixels)


def is_isolated(file: BinaryIO) -> bool:
    """Whether a file, which can seek, is decoded in a process of its own; no decoder sees its bytes."""
    try:
        return isinstance(_reader_of(file)[1], IsolatedReader)
    except InvalidImage:
        return False


def is_isolated_kind(kind: str) -> bool:
    """Whether files of a kind, see PictureFacts, are decoded in processes of their own."""
    return isinstance(READERS.get(kind), IsolatedReader)


def _reader_of(file: BinaryIO) -> tuple[str, ReaderModule | IsolatedReader]:
    file.seek(0)
    head = file.read(kinds.HEAD_BYTES)
    if camera_raw.is_raw_tiff(file):
        return "raw", READERS["raw"]
    for kind, reader in READERS.items():
        if reader.matches(head):
            return kind, reader
    raise kinds.refusal(head)
