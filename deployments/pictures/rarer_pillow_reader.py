"""Reads what else Pillow reads: JPEG 2000, TGA, PCX, SGI, DDS, PSD, ICO, ICNS, PPM, QOI, FITS and others."""

from deployments.pictures import pillow_reader
from deployments.pictures.pillow_reader import is_deep, read, size

__all__ = ["is_deep", "matches", "read", "size"]


def matches(head: bytes) -> bool:
    """Whether Pillow has a decoder that may read the file; of some formats it knows no signature."""
    return pillow_reader.accepts(pillow_reader.rarer_formats(), head)
