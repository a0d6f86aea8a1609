"""What decoders raise on broken files, as the service's own errors."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from deployments.errors import InvalidImage, InvalidRequest, ServiceError, TooLarge

# Pillow's own guard against huge images: a warning beyond its limit, an error beyond twice the limit.
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)

# The errors that decoders raise on broken files.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
)


@contextmanager
def decoding(kind: str) -> Iterator[None]:
    """Inside the block, a decoder's errors are raised as the service's own.

    Args:
        kind: the file's kind, with its article: `a PNG file`.

    Raises:
        InvalidImage: the file is damaged or truncated.
        TooLarge: there is not enough memory for the pixels, or Pillow's guard against huge images stopped it.
    """
    try:
        yield
    except ServiceError:
        raise
    except BOMBS as error:
        raise TooLarge(f"image: has more than the {Image.MAX_IMAGE_PIXELS} pixels that are accepted") from error
    except MemoryError as error:
        raise TooLarge("image: needs more memory to decode than there is") from error
    except DECODER_ERRORS as error:
        raise InvalidImage(
            f"image: is damaged or truncated, or is {kind} of a sort that is not read: {error}"
        ) from error


def check_page(page: int, pages: int) -> None:
    """Raises InvalidRequest if the file has no such page; pages are counted from 0."""
    if page >= pages:
        raise InvalidRequest(f"page: is {page}, and the file has {pages}, counted from 0")
