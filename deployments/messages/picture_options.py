"""PictureOptions: what of a file is shown as the picture, and how samples of more than 8 bits become 8-bit ones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypeAlias

from deployments.errors import InvalidRequest

Window: TypeAlias = "Literal['auto', 'full'] | tuple[float, float]"

LEVELS = 255.0
"""What the width of a window is multiplied by."""

MAX_BAND = 65_535
MAX_PAGE = 65_535

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
PLANE = re.compile(r"[czt]=\d{1,5}(,[czt]=\d{1,5}){0,2}")


@dataclass(frozen=True)
class Plane:
    """A plane of a microscope's picture (OME-TIFF, ImageJ), each counted from 0.

    Attributes:
        c: the channel.
        z: the slice in depth.
        t: the point in time.
    """

    c: int = 0
    z: int = 0
    t: int = 0


@dataclass(frozen=True)
class PictureOptions:
    """How a file is read as a picture.

    Attributes:
        window: `auto`: 8-bit samples stay as they are, others are shown in a robust window of the picture's own values;
            `full`: all values that there may be; `(low, high)`: these become black and white, whatever the type.
        bands: one band, shown as grey, or three, shown as red, green and blue, counted from 1 as GDAL does; None is the
            first three, or the one.
        page: the page of a file that holds several, counted from 0; or a plane of an OME-TIFF.
        background: the colour behind transparent pixels, red, green and blue, 0 to 255.

    Raises:
        InvalidRequest: an option is out of range.
    """

    window: Window = "auto"
    bands: tuple[int, ...] | None = None
    page: int | Plane = 0
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        if self.window not in ("auto", "full"):
            _check_window(self.window)
        if self.bands is not None and not (
            isinstance(self.bands, tuple) and len(self.bands) in (1, 3) and _are_ints(self.bands, 1, MAX_BAND)
        ):
            raise InvalidRequest(f"bands: must be one or three numbers from 1 to {MAX_BAND}, is {self.bands!r:.99}")
        planes = (self.page.c, self.page.z, self.page.t) if isinstance(self.page, Plane) else (self.page,)
        if not _are_ints(planes, 0, MAX_PAGE):
            raise InvalidRequest(f"page: must be a number from 0 to {MAX_PAGE}, is {self.page!r:.99}")
        if not (
            isinstance(self.background, tuple) and len(self.background) == 3 and _are_ints(self.background, 0, 255)
        ):
            raise InvalidRequest(f"background: must be three numbers from 0 to 255, is {self.background!r:.99}")

    @classmethod
    def parse(
        cls,
        window: str | None = None,
        bands: str | None = None,
        page: str | None = None,
        background: str | None = None,
    ) -> "PictureOptions":
        """Reads the options from the text of form fields; an empty text counts as not given.

        Args:
            window: `auto`, `full`, or `low,high`.
            bands: `1`, or `3,2,1`; counted from 1.
            page: `0`; or `c=1,z=4,t=0`, of which any may be left out.
            background: `#rrggbb`.

        Raises:
            InvalidRequest: a text is something else; the message names the field.
        """
        return cls(
            window=_window_of(window.strip()) if window and window.strip() else cls.window,
            bands=_bands_of(bands.strip()) if bands and bands.strip() else cls.bands,
            page=_page_of(page.strip()) if page and page.strip() else cls.page,
            background=_colour_of(background.strip()) if background and background.strip() else cls.background,
        )

    def text(self) -> str:
        """Returns the options that are not the defaults, always in the same words; "" if all are."""
        parts = []
        if self.window != "auto":
            parts.append(f"window={self.window if self.window == 'full' else window_text(self.window)}")
        if self.bands is not None:
            parts.append(f"bands={','.join(map(str, self.bands))}")
        if isinstance(self.page, Plane):
            parts.append(f"page=c={self.page.c},z={self.page.z},t={self.page.t}")
        elif self.page:
            parts.append(f"page={self.page}")
        if self.background != (255, 255, 255):
            parts.append("background=#{:02x}{:02x}{:02x}".format(*self.background))
        return "&".join(parts)

    def page_number(self) -> int:
        """Returns the page, for a file whose pages have no channels.

        Raises:
            InvalidRequest: a plane was asked for.
        """
        if isinstance(self.page, Plane):
            raise InvalidRequest("page: c, z and t are for OME-TIFF and ImageJ's TIFF; this file has plain pages")
        return self.page


def window_text(window: tuple[float, float]) -> str:
    """Writes a window as `low,high`, so that `window` with this text shows the very same pixels."""
    return ",".join(repr(float(bound)).removesuffix(".0") for bound in window)


def _check_window(window: Any) -> None:
    are_two = isinstance(window, tuple) and len(window) == 2
    if not are_two or not all(isinstance(bound, (int, float)) and isfinite(bound) for bound in window):
        raise InvalidRequest(f"window: must be auto, full, or low,high with two finite numbers, is {window!r:.99}")
    low, high = window
    if not low < high:
        raise InvalidRequest(f"window: low must be below high, is {window_text((low, high))}")
    if not isfinite(LEVELS * (high - low)):
        raise InvalidRequest(f"window: low and high are too far apart for floats, is {window_text((low, high))}")


def _are_ints(values: Sequence[object], low: int, high: int) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high for value in values)


def _window_of(text: str) -> Window:
    if text == "auto":
        return "auto"
    if text == "full":
        return "full"
    bounds = [bound.strip() for bound in text.split(",")]
    if len(bounds) != 2 or not all(NUMBER.fullmatch(bound) for bound in bounds):
        raise InvalidRequest(f"window: must be auto, full, or low,high, is {text[:99]!r}")
    return float(bounds[0]), float(bounds[1])


def _bands_of(text: str) -> tuple[int, ...]:
    bands = [band.strip() for band in text.split(",")]
    if not all(re.fullmatch(r"\d{1,5}", band, re.ASCII) for band in bands):
        raise InvalidRequest(f"bands: must be one band or three, such as 1 or 3,2,1, is {text[:99]!r}")
    return tuple(int(band) for band in bands)


def _page_of(text: str) -> int | Plane:
    if re.fullmatch(r"\d{1,5}", text, re.ASCII):
        return int(text)
    if not re.fullmatch(PLANE, text):
        raise InvalidRequest(f"page: must be a number, counted from 0, or c=…,z=…,t=…, is {text[:99]!r}")
    given = [part.split("=") for part in text.split(",")]
    if len({name for name, _ in given}) != len(given):
        raise InvalidRequest(f"page: names c, z or t twice: {text[:99]!r}")
    return Plane(**{name: int(value) for name, value in given})


def _colour_of(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise InvalidRequest(f"background: must be a colour as #rrggbb, is {text[:99]!r}")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue
