"""Reads what else Pillow reads: JPEG 2000, TGA, PCX, SGI, DDS, PSD, ICO, ICNS, PPM, QOI, FITS and others."""

from PIL import Image

from deployments.pictures import kinds, pillow_reader
from deployments.pictures.pillow_reader import is_deep, read, size

__all__ = ["is_deep", "matches", "read", "size"]


def matches(head: bytes) -> bool:
    """Whether Pillow may have a decoder for the file.

    Of some formats, such as TGA, it knows no signature: what is known to be something else is none of them.
    """
    if kinds.by_magic(head) is not None:
        return False
    formats = pillow_reader.rarer_formats()
    signed = tuple(name for name in formats if Image.OPEN[name][1] is not None)
    return pillow_reader.accepts(signed, head) or not kinds.name_of(head)
