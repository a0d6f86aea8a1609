"""Pillow's own guard against huge images, which is one number for the whole process: set while a file is read."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from deployments.errors import TooLarge
from deployments.pictures.faults import BOMBS


class _Limits:
    """The limits of the files that are being read, and the number that is set when there are none."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.current: list[int] = []
        self.otherwise: int | None = None


_limits = _Limits()


@contextmanager
def pillow_guard(max_pixels: int) -> Iterator[None]:
    """Inside the block, Pillow refuses what has more pixels: some of its readers decode while they open a file.

    While several threads read, the highest of their limits holds for all, so that none refuses what another limit
    accepts; each limit itself is checked elsewhere. The last one sets back what was there before the first.

    Args:
        max_pixels: the most that are accepted. Pillow warns beyond them, and raises an error beyond twice as many.

    Raises:
        TooLarge: Pillow refused a picture.
    """
    with _limits.lock:
        if not _limits.current:
            _limits.otherwise = Image.MAX_IMAGE_PIXELS
        _limits.current.append(max_pixels)
        Image.MAX_IMAGE_PIXELS = max(_limits.current)
    try:
        yield
    except BOMBS as error:
        raise TooLarge(f"image: has more than the {max_pixels} pixels that are accepted") from error
    finally:
        with _limits.lock:
            _limits.current.remove(max_pixels)
            Image.MAX_IMAGE_PIXELS = max(_limits.current) if _limits.current else _limits.otherwise
