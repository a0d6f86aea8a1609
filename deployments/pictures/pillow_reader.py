"""Reads the everyday pictures of 8 bits with Pillow: JPEG, PNG, WebP, GIF, BMP. Tolerant where browsers are."""

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from deployments.errors import InvalidImage, InvalidRequest
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import jpeg, kinds, png_chunks
from deployments.pictures.exif import orientation, upright, upright_size
from deployments.pictures.faults import check_page, decoding
from deployments.pictures.pil_image import has_deep_samples, raster_formats, raster_of
from deployments.pictures.raster import Raster

EVERYDAY = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB")
"""Pillow's names of the formats whose decoders every browser has: they run in the service's own process."""

# Formats that other readers read.
ELSEWHERE = {"TIFF", "AVIF", "HEIF"}

# Pillow composes an animation's frames one after the other, so that a late one takes long.
LONGEST_SEEK_S = 20.0

PREFIX_BYTES = 16


def matches(head: bytes) -> bool:
    """Whether the file is an everyday picture, by its first bytes."""
    return accepts(EVERYDAY, head)


def accepts(formats: tuple[str, ...], head: bytes) -> bool:
    """Whether Pillow takes the file for one of these formats; those without a signature count as taken."""
    Image.init()
    return any(_accepts(Image.OPEN[name][1], head[:PREFIX_BYTES]) for name in formats)


def _accepts(accept: Callable[[bytes], bool | str] | None, prefix: bytes) -> bool:
    try:
        # Pillow answers with a text where its own build lacks the format's library.
        return accept is None or accept(prefix) is True
    except (SyntaxError, IndexError, TypeError, struct.error):
        # Some do not expect that a file may be shorter than they look.
        return False


def rarer_formats() -> tuple[str, ...]:
    """Returns Pillow's names of the other formats that are read."""
    return tuple(name for name in raster_formats() if name not in ELSEWHERE | {*EVERYDAY})


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns the upright picture's width and height, from the file's header.

    Raises:
        InvalidImage: the file is damaged, or of a kind that is not read.
        InvalidRequest: it has no such page.
        TooLarge: Pillow's guard against huge images stopped it.
    """
    with _opened(file) as opened, decoding(opened.kind):
        _seek(opened.image, options.page_number())
        return upright_size(opened.image.size, opened.orientation)


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes the file to `H×W×3` uint8 sRGB, or to `H×W×1` of more bits if it is grey of more than 8.

    Metadata that cannot be read count as absent. The EXIF orientation is applied, profiles are brought to sRGB, and
    `background` shows through transparent pixels. `page` is the frame of an animation as it is shown.

    Raises:
        InvalidImage, InvalidRequest, TooLarge: as `size` does; also if pixels are missing.
    """
    with _opened(file) as opened, decoding(opened.kind):
        _seek(opened.image, options.page_number())
        image = upright(_loaded(opened, file, options.page_number()), opened.orientation)
        return raster_of(image, opened.profile, options.background, opened.kind)


def is_deep(file: BinaryIO, _: PictureOptions) -> bool:
    """Returns whether samples have more than 8 bits, from the file's header; errors as `size`."""
    with _opened(file) as opened:
        return has_deep_samples(opened.image)


@dataclass(frozen=True, eq=False)
class _Opened:
    """A file that Pillow has open, and what its metadata say."""

    image: Any
    profile: bytes | None
    orientation: int

    @property
    def kind(self) -> str:
        name: str = self.image.format
        return f"{'an' if name[0] in 'AEIMX' and name not in ('ICO', 'ICNS') else 'a'} {name} file"


@contextmanager
def _opened(file: BinaryIO) -> Iterator[_Opened]:
    """Opens the file and reads its header."""
    file.seek(0)
    head = file.read(kinds.HEAD_BYTES)
    if head.startswith(png_chunks.SIGNATURE):
        png = png_chunks.without_metadata(file)
        with _image(png.file, head) as image:
            _scale_transparency(image, png.bit_depth)
            yield _Opened(image, png.profile, orientation(png.exif))
        return
    file.seek(0)
    with _image(file, head) as image:
        yield _Opened(image, image.info.get("icc_profile"), orientation(image.info.get("exif")))


@contextmanager
def _image(file: BinaryIO, head: bytes) -> Iterator[Image.Image]:
    formats = [*EVERYDAY, *rarer_formats()]
    with decoding("a picture"):
        try:
            image = Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            taken = [name for name in formats if Image.OPEN[name][1] and accepts((name,), head)]
            if taken and not kinds.by_magic(head):
                raise InvalidImage(
                    f"image: is a {taken[0]} file that is damaged or truncated, or of a sort not read"
                ) from error
            raise kinds.refusal(head) from error
    with image:
        yield image


def _scale_transparency(image: Image.Image, bit_depth: int) -> None:
    """Brings the transparent value of a grey PNG of 2 or 4 bits to 8 bits, as Pillow does with the samples only."""
    transparent = image.info.get("transparency")
    if image.mode == "L" and isinstance(transparent, int) and bit_depth in (2, 4):
        image.info["transparency"] = transparent * (255 // (2**bit_depth - 1))


def _seek(image: Any, page: int) -> None:
    """Goes to a frame of an animation or a page of a collection.

    The default image of an APNG that is no part of the animation is what programs show that know no APNG.
    """
    first = int(bool(image.info.get("default_image")))
    if page == 0 and not first:
        return
    check_page(page, getattr(image, "n_frames", 1) - first)
    started = time.perf_counter()
    for frame in range(1, first + page + 1):
        image.seek(frame)
        if time.perf_counter() - started > LONGEST_SEEK_S:
            raise InvalidRequest(f"page: {page} takes too long to get at; frame {frame} took {LONGEST_SEEK_S:.0f} s")


def _loaded(opened: _Opened, file: BinaryIO, page: int) -> Image.Image:
    """Decodes the pixels."""
    image = opened.image
    if image.format not in ("JPEG", "MPO") or page:
        image.load()
        return image  # type: ignore[no-any-return]
    # Pillow has read as far as the first scan; it goes back for the pixels.
    header_bytes = image.fp.tell()
    if image.info.get("progressive"):
        file.seek(0)
        jpeg.check_scans(file.read())
    file.seek(0)
    if jpeg.is_lossless_ycbcr(image, file.read(header_bytes)):
        image.draft("YCbCr", image.size)
    try:
        image.load()
    except OSError:
        file.seek(0)
        completed = jpeg.without_end(file.read())
        if completed is None:
            raise
        return completed
    return image  # type: ignore[no-any-return]
