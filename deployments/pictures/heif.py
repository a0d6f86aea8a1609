"""Reads HEIC and HEIF with pillow-heif, and AVIF with Pillow."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import AvifImagePlugin, Image, UnidentifiedImageError, features

from deployments.errors import InvalidImage
from deployments.machine import usable_cores
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.colours import shown
from deployments.pictures.exif import orientation, upright, upright_size
from deployments.pictures.extra import library
from deployments.pictures.faults import check_page, decoding
from deployments.pictures.kinds import BRANDS
from deployments.pictures.raster import Raster

HEIC, AVIF = "a HEIC picture", "an AVIF picture"


def matches(head: bytes) -> bool:
    """Whether the file is HEIC, HEIF or AVIF."""
    return bool(_kind(head))


def is_avif(head: bytes) -> bool:
    """Whether the file is AVIF, a still picture or an animation."""
    return _kind(head) == AVIF


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns width and height as the picture is shown, after the container's rotation, mirroring and cropping.

    Raises:
        InvalidImage: the file is damaged, or the library for it is missing.
        InvalidRequest: it has no such page.
    """
    with _opened(file, options.page_number()) as (image, _, turn):
        width, height = image.size
        return upright_size((width, height), turn)


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes the file to `H×W×3` uint8 sRGB; samples of 10 and 12 bits lose their low bits.

    Rotation and mirroring are the container's (`irot`, `imir`). The EXIF orientation repeats them, so it does not
    count (ISO/IEC 23000-22, 7.3.4.2). Thumbnails, depth maps and other auxiliary pictures are no pages: page 0 is the
    primary picture of a collection, the others follow in their order.

    Raises:
        InvalidImage, InvalidRequest: as `size` does.
        TooLarge: there is not enough memory for the pixels.
    """
    with _opened(file, options.page_number()) as (image, kind, turn), decoding(kind):
        decoded = image.to_pillow() if kind == HEIC else image
        decoded.load()
        samples = shown(upright(decoded, turn), decoded.info.get("icc_profile"), options.background)
        return Raster(samples, description=kind)


def is_deep(*_: object) -> bool:
    """Returns that samples come out with 8 bits."""
    return False


def _kind(head: bytes) -> str:
    """Which of the two the file is, by the brands that its first box lists; "" if it is neither."""
    if head[4:8] != b"ftyp":
        return ""
    (length,) = struct.unpack(">I", head[:4])
    listed = head[16 : max(16, min(length, 256))]
    brands = [head[8:12], *(listed[at : at + 4] for at in range(0, len(listed), 4))]
    if any(brand in BRANDS["AVIF"] for brand in brands):
        return AVIF
    return HEIC if brands[0] in BRANDS["HEIC"] else ""


@contextmanager
def _opened(file: BinaryIO, page: int) -> Iterator[tuple[Any, str, int]]:
    """Opens a page: a picture that is not decoded yet, its kind, and the orientation that is still to be applied."""
    file.seek(0)
    kind = _kind(file.read(256))
    file.seek(0)
    with decoding(kind):
        if kind == HEIC:
            yield _heic(file, page), kind, 1
            return
        if not features.check("avif"):
            raise InvalidImage("image: is an AVIF picture, which this installation's Pillow does not read")
        with _avif(file) as image:
            check_page(page, getattr(image, "n_frames", 1))
            image.seek(page)
            # Pillow writes the container's rotation and mirroring there, in place of what the file's EXIF says.
            yield image, kind, orientation(image.info.get("exif"))


def use_all_cores() -> None:
    """Tells Pillow how many threads an AVIF decoder may have; its default does not know of a container's CPU quota."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = usable_cores()


def _avif(file: BinaryIO) -> Any:
    use_all_cores()
    try:
        return Image.open(file, formats=["AVIF"])
    except UnidentifiedImageError as error:
        raise InvalidImage(f"image: is {AVIF} that is damaged or truncated, or of a sort not read") from error


def _heic(file: BinaryIO, page: int) -> Any:
    pillow_heif = library("pillow_heif", HEIC)
    pillow_heif.options.THUMBNAILS = False
    pillow_heif.options.DEPTH_IMAGES = False
    pillow_heif.options.AUX_IMAGES = False
    opened = pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
    pages = [opened.primary_index, *(index for index in range(len(opened)) if index != opened.primary_index)]
    check_page(page, len(opened))
    return opened[pages[page]]
