"""Reads TIFF pictures: of any sample format, number of bands and layout, GeoTIFF, BigTIFF and OME-TIFF included.

Samples are decoded with tifffile and imagecodecs, one strip or tile at a time, and only the bands that are shown.
rasterio (GDAL), which the project has too, finds no pictures behind previews and has no float16; and a file that it
opens can make it look for others. What every program writes, 8-bit pictures in the colours of photographs, is Pillow's:
its bytes stay, and colour profiles, CMYK and JPEG's colours are understood there.
"""

import io
import logging
import math
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from deployments.errors import InvalidImage, TooLarge
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.exif import upright_samples, upright_size
from deployments.pictures.faults import decoding
from deployments.pictures.pil_image import raster_by_info
from deployments.pictures.raster import Raster, Samples, bands_text, choose_bands
from deployments.pictures.tiff_directory import SIGNATURES, Directories, Directory

# tifffile tells of each oddity of a file, and uploads are odd at will.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
SAMPLES, ROWS_PER_STRIP, PLANAR, TILE_WIDTH, TILE_HEIGHT = 277, 278, 284, 322, 323
EXTRA_SAMPLES, SAMPLE_FORMAT, DEPTH, TILE_DEPTH, NO_DATA, DNG_VERSION = 338, 339, 32997, 32998, 42113, 50706
COLOUR_MAP = 320

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
CFA, LINEAR_RAW = 32803, 34892

UNSPECIFIED, PREMULTIPLIED, ALPHA = 0, 1, 2

SAMPLE_KINDS = {1: "uint", 2: "int", 3: "float", 4: "uint", 5: "complex int", 6: "complex"}

# Compressions whose decoders are told how much they may write.
BOUNDED = {1, 5, 8, 32773, 32946, 34925, 50000, 34926}
JPEG = 7
# Compressions whose data say for themselves how large they are, in a header that Pillow reads.
WITH_HEADER = {33003, 33005, 34712, 34933, 50001}
LERC = 34887

MOST_SAMPLE_BYTES = 2**31
"""Of a strip or tile, or of the bands that are shown."""

MOST_SEGMENTS = 2**18


def matches(head: bytes) -> bool:
    """Whether the file is a TIFF, by its first bytes."""
    return head[:4] in SIGNATURES


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns the upright picture's width and height, from its tags.

    Raises:
        InvalidImage: the file is damaged, or of a sort that is not read.
        InvalidRequest: it has no such page.
    """
    picture = _picture(file, options)
    width, height = picture.value(WIDTH, 0), picture.value(HEIGHT, 0)
    return upright_size((width, height), picture.value(ORIENTATION, 1))


def is_deep(file: BinaryIO, options: PictureOptions) -> bool:
    """Returns whether the samples are others than integers of up to 8 bits, from their tags; errors as `size`."""
    picture = _picture(file, options)
    layout = Layout.of(picture)
    return layout.bits > 8 or not layout.is_unsigned


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes a page.

    Raises:
        InvalidImage: the file is damaged, or of a sort that is not read; the message says which.
        InvalidRequest: it has no such page or band.
        TooLarge: a strip or the samples need too much memory.
    """
    file.seek(0)
    data = file.read()
    directories = Directories(data)
    picture = directories.picture(options.page)
    layout = Layout.of(picture)
    with decoding(f"a TIFF file ({layout.description})"):
        if layout.is_photograph and (options.bands is None or layout.photometric not in (0, 1, 2)):
            return replace(_by_pillow(data, picture, options, layout), is_chosen=True)
        raster = _by_bands(data, picture, options, layout)
        mask = directories.mask_of(picture)
        if mask is not None:
            masked = _samples(data, mask, Layout.of(mask), [0])[:, :, 0] > 0
            raster = replace(raster, valid=masked if raster.valid is None else masked & raster.valid)
    orientation = picture.value(ORIENTATION, 1)
    valid = None if raster.valid is None else upright_samples(raster.valid, orientation)
    return replace(raster, samples=upright_samples(raster.samples, orientation), valid=valid, is_chosen=True)


def _picture(file: BinaryIO, options: PictureOptions) -> Directory:
    file.seek(0)
    return Directories(file.read()).picture(options.page)


@dataclass(frozen=True)
class Layout:
    """What a picture's samples are.

    Attributes:
        place: see Directory.
        bits: of a sample.
        kind: TIFF's SampleFormat: 1 unsigned, 2 signed, 3 float, 4 undefined, 5 and 6 complex.
        samples: how many a pixel has.
        photometric: what they mean.
        extra: what those mean that are no colours: 1 and 2 alpha.
        compression: TIFF's number.
        is_planar: whether each band is stored apart.
    """

    place: int | None
    bits: int
    kind: int
    samples: int
    photometric: int
    extra: tuple[int, ...]
    compression: int
    is_planar: bool

    @classmethod
    def of(cls, picture: Directory) -> "Layout":
        """Reads the tags.

        Raises:
            InvalidImage: samples differ in their types, or form a volume.
        """
        samples = picture.value(SAMPLES, 1)
        bits, kinds = set(picture.values(BITS, (1,))[:samples]), set(picture.values(SAMPLE_FORMAT, (1,))[:samples])
        if len(bits) > 1 or len(kinds) > 1 or not 1 <= samples <= 65_535:
            shown = "/".join(map(str, sorted(bits)))
            raise InvalidImage(f"image: is a TIFF file whose {samples} bands have different types, of {shown} bits")
        if picture.value(DEPTH, 1) > 1 or picture.value(TILE_DEPTH, 1) > 1:
            raise InvalidImage("image: is a TIFF file that holds a volume (ImageDepth above 1), not a picture")
        return cls(
            picture.place,
            bits.pop(),
            kinds.pop(),
            samples,
            picture.value(PHOTOMETRIC, BLACK_IS_ZERO if samples < 3 else RGB),
            picture.values(EXTRA_SAMPLES)[:samples],
            picture.value(COMPRESSION, 1),
            picture.value(PLANAR, 1) == 2,
        )

    @property
    def description(self) -> str:
        """For messages: `TIFF, 3 bands of uint16`."""
        return f"TIFF, {bands_text(self.samples, self.sample_kind)}"

    @property
    def sample_kind(self) -> str:
        """The name of the samples' type: `uint16`."""
        return f"{SAMPLE_KINDS.get(self.kind, f'SampleFormat {self.kind}, bits ')}{self.bits}"

    @property
    def is_unsigned(self) -> bool:
        """Whether samples are unsigned integers, or of no stated format."""
        return self.kind in (1, 4)

    @property
    def alpha(self) -> int | None:
        """The index of the sample that is alpha; None if there is none."""
        first = self.samples - len(self.extra)
        return next((first + at for at, what in enumerate(self.extra) if what in (PREMULTIPLIED, ALPHA)), None)

    @property
    def is_photograph(self) -> bool:
        """Whether Pillow reads it, with the colours that programs for photographs know."""
        if self.place is None or self.photometric in (CMYK, YCBCR, LAB):
            return self.place is not None
        plain = {
            WHITE_IS_ZERO: self.samples == 1,
            BLACK_IS_ZERO: self.samples == 1 + (self.alpha == 1),
            RGB: self.samples == 3,
            PALETTE: self.samples == 1,
        }
        small = self.bits <= 8 and self.is_unsigned and plain.get(self.photometric, False)
        return small and not (self.is_planar and self.samples > 1)


# ---- by Pillow


def _by_pillow(data: bytes, picture: Directory, options: PictureOptions, layout: Layout) -> Raster:
    assert picture.place is not None
    try:
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            image.seek(picture.place)
            raster = raster_by_info(image, options.background)
    except OSError as error:
        if "decoder" in str(error) or "cannot identify" in str(error):
            raise InvalidImage(
                f"image: is a TIFF file ({layout.description}, PhotometricInterpretation {layout.photometric}, "
                f"compression {layout.compression}) that is damaged, or of a sort that is not read"
            ) from error
        raise
    if options.bands is not None:
        chosen = choose_bands(options.bands, raster.samples.shape[2], layout.description)
        raster = replace(raster, samples=raster.samples[:, :, chosen])
    return replace(raster, description=layout.description)


# ---- by tifffile


def _by_bands(data: bytes, picture: Directory, options: PictureOptions, layout: Layout) -> Raster:
    """Decodes the bands that are shown."""
    _check_kind(layout)
    alpha = layout.alpha
    bands = [at for at in range(layout.samples) if at != alpha] if options.bands is None else range(layout.samples)
    chosen = [bands[at] for at in choose_bands(options.bands, len(bands), layout.description)]
    if layout.photometric == PALETTE:
        return _by_palette(data, picture, layout)
    if alpha is not None and options.bands is None:
        samples = _samples(data, picture, layout, [*chosen, alpha])
        if PREMULTIPLIED in layout.extra:
            _divide_by_alpha(samples)
        elif not _is_alpha(samples[:, :, -1]):
            samples = samples[:, :, :-1]
    else:
        samples = _samples(data, picture, layout, chosen)
    samples, valid = _without_no_data(samples, picture.text(NO_DATA), colours=len(chosen))
    is_odd = layout.is_unsigned and layout.bits not in (1, 8, 16, 32, 64)
    full = (0.0, 2.0**layout.bits - 1) if is_odd else None
    inverted = layout.photometric == WHITE_IS_ZERO
    return Raster(samples, valid, None, inverted, layout.description, full)


def _check_kind(layout: Layout) -> None:
    """Refuses what is not read, by its name."""
    if layout.kind in (5, 6):
        raise InvalidImage(
            f"image: is a TIFF file with {bands_text(layout.samples, layout.sample_kind)}; complex numbers are no "
            "picture, send their magnitude"
        )
    if layout.photometric in (CFA, LINEAR_RAW):
        raise InvalidImage("image: is a TIFF file with a camera's raw data")
    is_jpeg = layout.photometric == YCBCR and layout.compression == JPEG
    if layout.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, 4) and not is_jpeg:
        raise InvalidImage(
            f"image: is a TIFF file ({layout.description}) whose PhotometricInterpretation {layout.photometric} is not "
            "read"
        )


def _by_palette(data: bytes, picture: Directory, layout: Layout) -> Raster:
    """Looks the colours up in a palette of 16-bit values."""
    entries = np.array(picture.values(COLOUR_MAP), np.uint16)
    if len(entries) != 3 * 2**layout.bits:
        raise InvalidImage(f"image: is a damaged TIFF file: its palette has {len(entries)} values")
    indices = _samples(data, picture, layout, [0])[:, :, 0].astype(np.intp)
    palette = (entries.reshape(3, -1).T >> 8).astype(np.uint8)
    return Raster(palette[indices], description=layout.description)


def _samples(data: bytes, picture: Directory, layout: Layout, wanted: list[int]) -> Samples:
    """Decodes samples, `H×W×C` for the C that are wanted, strip by strip or tile by tile."""
    width, height = picture.value(WIDTH, 0), picture.value(HEIGHT, 0)
    page = _page(data, picture.offset)
    if page.dtype is None:
        raise InvalidImage(f"image: is a TIFF file with {bands_text(layout.samples, layout.sample_kind)}, not read")
    _check_segments(page, layout, (width, height), len(wanted))
    fill = page.nodata if page.nodata == page.nodata or page.dtype.kind == "f" else 0
    samples = np.full((height, width, len(wanted)), fill, page.dtype)
    planes = wanted if layout.is_planar else [0]
    per_plane = _segments_of_plane(page)
    for at, plane in enumerate(planes):
        for index in range(plane * per_plane, (plane + 1) * per_plane):
            decoded = _segment(data, page, index, layout)
            if decoded is None:
                continue
            segment, (_, _, top, left, _) = decoded
            rows, columns = min(segment.shape[1], height - top), min(segment.shape[2], width - left)
            shown = samples[top : top + rows, left : left + columns]
            if layout.is_planar:
                shown[:, :, at] = segment[0, :rows, :columns, 0]
            else:
                shown[...] = segment[0, :rows, :columns][:, :, wanted]
    return samples


def _page(data: bytes, offset: int) -> Any:
    """Returns tifffile's page at an offset."""
    # Not its series: those of OME-TIFF may name other files, and sizes that are not there.
    file = tifffile.TiffFile(io.BytesIO(data), _multifile=False)
    file.filehandle.seek(offset)
    return tifffile.TiffPage(file, index=0)


def _segments_of_plane(page: Any) -> int:
    height, width = int(page.imagelength), int(page.imagewidth)
    if page.is_tiled:
        return math.ceil(height / int(page.tilelength)) * math.ceil(width / int(page.tilewidth))
    return math.ceil(height / int(page.rowsperstrip))


def _check_segments(page: Any, layout: Layout, whole: tuple[int, int], wanted: int) -> None:
    """Checks sizes before anything of that size is made."""
    if (page.imagewidth, page.imagelength) != whole or 0 in page.shaped:
        raise InvalidImage("image: is a damaged TIFF file: its size is not clear")
    if page.is_tiled:
        columns, rows = page.tilewidth, page.tilelength
    else:
        columns, rows = page.imagewidth, page.rowsperstrip
    if min(columns, rows) < 1:
        raise InvalidImage("image: is a damaged TIFF file: its strips or tiles are empty")
    if _segments_of_plane(page) * (wanted if layout.is_planar else 1) > MOST_SEGMENTS:
        raise InvalidImage(f"image: is a TIFF file of more than {MOST_SEGMENTS} strips or tiles")
    in_pixel = (1 if layout.is_planar else layout.samples) * page.dtype.itemsize
    needed = max(columns * rows * in_pixel, math.prod(whole) * wanted * page.dtype.itemsize)
    if needed > MOST_SAMPLE_BYTES:
        raise TooLarge(f"image: its samples take {needed} bytes, more than the {MOST_SAMPLE_BYTES} that are accepted")


def _segment(data: bytes, page: Any, index: int, layout: Layout) -> tuple[NDArray[Any], tuple[int, ...]] | None:
    """Decodes a strip or tile, `1×H×W×C`, and says where it lies; None if the file leaves it out."""
    if index >= len(page.dataoffsets) or index >= len(page.databytecounts):
        raise InvalidImage("image: is damaged or truncated: strips or tiles are missing")
    start, length = page.dataoffsets[index], page.databytecounts[index]
    if not start or not length:
        return None
    encoded = data[start : start + length]
    if len(encoded) < length:
        raise InvalidImage("image: is damaged or truncated: the file ends before its samples")
    _check_compression(encoded, page, layout)
    decoded, where, _ = page.decode(encoded, index, jpegtables=page.jpegtables)
    return decoded, where


def _check_compression(encoded: bytes, page: Any, layout: Layout) -> None:
    """Refuses data whose own header claims more than the strip or tile has."""
    columns = page.tilewidth if page.is_tiled else page.imagewidth
    rows = page.tilelength if page.is_tiled else page.rowsperstrip
    if layout.compression in BOUNDED:
        return
    if layout.compression == JPEG:
        _, found_rows, found_columns, _ = tifffile.tifffile.jpeg_shape(encoded)
    elif layout.compression in WITH_HEADER:
        with Image.open(io.BytesIO(encoded)) as image:
            found_columns, found_rows = image.size
    elif layout.compression == LERC and encoded[:6] == b"Lerc2 ":
        version = int.from_bytes(encoded[6:10], "little")
        start = 14 if version >= 3 else 10
        found_rows, found_columns = np.frombuffer(encoded, "<i4", 2, start).tolist()
    else:
        raise InvalidImage(f"image: is a TIFF file ({layout.description}) whose compression {_name(page)} is not read")
    if not (0 < found_rows <= rows and 0 < found_columns <= columns):
        raise InvalidImage(f"image: is a damaged TIFF file: a part of {columns}×{rows} says it is larger")


def _name(page: Any) -> str:
    return str(getattr(page.compression, "name", page.compression))


# ---- what the samples mean


def _without_no_data(samples: Samples, text: str, colours: int) -> tuple[Samples, NDArray[np.bool_] | None]:
    """Applies GDAL's tag for the value that means no data: floats become NaN, and of integers the pixels are invalid.

    A pixel of unsigned integers has no data if all its bands have the value, since 0 and 65535 are also dark and
    bright; one of signed integers, where the value is none that is measured, if any has.
    """
    try:
        value = float(text.strip("\0 \n").replace(",", "."))
    except ValueError:
        return samples, None
    kind = samples.dtype
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            missing = samples[:, :, :colours] == kind.type(value)
        samples[:, :, :colours][missing] = np.nan
        return samples, None
    if kind.kind not in "iu" or not value.is_integer() or not np.iinfo(kind).min <= value <= np.iinfo(kind).max:
        return samples, None
    missing = samples[:, :, :colours] == kind.type(int(value))
    missing = missing.any(axis=2) if kind.kind == "i" else missing.all(axis=2)
    return samples, ~missing if missing.any() else None


def _is_alpha(values: NDArray[Any]) -> bool:
    """Returns whether a band that is declared as alpha is one: most of its values are quite transparent or opaque.

    GDAL declares the fourth band of 8 bits as alpha if nobody says otherwise, and it is often near infrared.
    """
    opaque = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    return bool(np.count_nonzero((values == 0) | (values == opaque)) * 2 >= values.size)


def _divide_by_alpha(samples: Samples) -> None:
    """Undoes, in place, the multiplication of colours by alpha."""
    opaque = float(np.iinfo(samples.dtype).max) if samples.dtype.kind in "iu" else 1.0
    for row in samples:
        alpha = row[:, -1:].astype(np.float64)
        colours = row[:, :-1] * np.divide(opaque, alpha, out=np.zeros_like(alpha), where=alpha > 0)
        row[:, :-1] = np.minimum(np.rint(colours) if samples.dtype.kind in "iu" else colours, opaque)
