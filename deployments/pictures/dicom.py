"""Reads one frame of a DICOM file with pydicom: rescaled, with the file's window, as the standard says in PS3.3."""

import logging
import math
import warnings
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deployments.errors import InvalidImage
from deployments.messages.picture_options import LEVELS, PictureOptions
from deployments.pictures.extra import library
from deployments.pictures.faults import check_page, decoding
from deployments.pictures.raster import Raster

KIND = "a DICOM file"

PREAMBLE_BYTES = 128
MAGIC = b"DICM"
# Files without the preamble begin with their first element: of group 2, or of group 8 in little-endian order.
BARE_BEGINNINGS = (b"\x02\0\0\0UL\x04\0", b"\x08\0\x05\0CS", b"\x08\0\x08\0CS", b"\x08\0\0\0UL\x04\0")

# pydicom tries every plug-in that is installed; these are the ones that are meant.
PLUGINS = {
    "1.2.840.10008.1.2.4.50": "imagecodecs",  # JPEG baseline
    "1.2.840.10008.1.2.4.51": "imagecodecs",  # JPEG extended
    "1.2.840.10008.1.2.4.57": "imagecodecs",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "imagecodecs",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "imagecodecs",  # JPEG-LS
    "1.2.840.10008.1.2.4.81": "imagecodecs",  # JPEG-LS, near-lossless
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000, lossless
    "1.2.840.10008.1.2.4.91": "pylibjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # high-throughput JPEG 2000, lossless
    "1.2.840.10008.1.2.4.202": "pylibjpeg",  # the same, by resolution
    "1.2.840.10008.1.2.4.203": "pylibjpeg",  # high-throughput JPEG 2000
    "1.2.840.10008.1.2.5": "pydicom",  # run lengths
}
UNCOMPRESSED = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
}
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"


def matches(head: bytes) -> bool:
    """Whether the file is DICOM, with its preamble or without."""
    return head[PREAMBLE_BYTES:].startswith(MAGIC) or head.startswith(BARE_BEGINNINGS)


def size(file: BinaryIO, options: PictureOptions) -> tuple[int, int]:
    """Returns a frame's width and height, from the data set.

    Raises:
        InvalidImage: the file is damaged, holds no picture, is compressed as is not read, or pydicom is missing.
        InvalidRequest: it has no such frame.
    """
    with _data_set(file, options.page_number(), without_pixels=True) as data_set:
        return int(data_set.Columns), int(data_set.Rows)


def read(file: BinaryIO, options: PictureOptions) -> Raster:
    """Decodes the frame `page`.

    Grey samples are the values that the modality means (Hounsfield units in CT): after the rescale slope and intercept
    or the modality's table. `window` of the result is the file's first VOI window. What is no linear window, a sigmoid
    or a table, is applied to the samples, unless the request has a window of its own.

    Returns:
        `H×W×1` for grey, `H×W×3` for RGB, YBR and palettes. Pixels of the padding value are not valid.

    Raises:
        InvalidImage, InvalidRequest: as `size` does.
        TooLarge: there is not enough memory for the pixels.
    """
    with _data_set(file, options.page_number()) as data_set:
        interpretation = data_set.get("PhotometricInterpretation", "MONOCHROME2")
        stored = _stored_samples(data_set, options.page_number())
        if interpretation == "PALETTE COLOR":
            return Raster(_by_palette(stored, data_set), description=KIND)
        bits = int(data_set.get("BitsStored") or 8 * stored.dtype.itemsize)
        if stored.ndim == 3:
            return Raster(stored, description=KIND, full=(0.0, 2.0**bits - 1) if stored.dtype != np.uint8 else None)
        samples, window = _in_window(_rescaled(stored, data_set, options.page_number()), data_set, options)
        if window is not None and samples.dtype == np.uint8:
            # Bytes would be shown as they are.
            samples = samples.astype(np.uint16)
        is_signed = bool(data_set.get("PixelRepresentation"))
        full = (0.0, 2.0**bits - 1) if samples is stored and stored.dtype.kind == "u" and not is_signed else None
        return Raster(
            samples[:, :, None],
            valid=_valid(stored, data_set),
            window=window,
            inverted=interpretation == "MONOCHROME1",
            description=KIND,
            full=full,
        )


def is_deep(*_: object) -> bool:
    """Returns that samples may have more than 8 bits, or be shown in a window."""
    return True


@contextmanager
def _data_set(file: BinaryIO, page: int, without_pixels: bool = False) -> Iterator[Any]:
    """Opens the file; what pydicom warns of and refuses inside the block is raised as the service's own."""
    pydicom = library("pydicom", KIND)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    file.seek(0)
    with decoding(KIND), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_set = pydicom.dcmread(file, force=True, stop_before_pixels=without_pixels)
        if not data_set.get("Rows") or not data_set.get("Columns"):
            kind = data_set.get("Modality") or "unknown"
            raise InvalidImage(f"image: is {KIND} without a picture (modality {kind})")
        _check_syntax(data_set, pydicom)
        check_page(page, int(data_set.get("NumberOfFrames") or 1))
        yield data_set


def _check_syntax(data_set: Any, pydicom: Any) -> None:
    """Raises InvalidImage if the pixels are compressed as is not read; files of old may not say, and are not."""
    syntax = data_set.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        data_set.file_meta.TransferSyntaxUID = pydicom.uid.UID(IMPLICIT_LITTLE_ENDIAN)
    elif syntax not in PLUGINS and syntax not in UNCOMPRESSED:
        advice = "; send the video in it as `video`" if "MPEG" in syntax.name or "HEVC" in syntax.name else ""
        raise InvalidImage(f"image: is {KIND} compressed as {syntax.name}, which is not read{advice}")


def _stored_samples(data_set: Any, page: int) -> NDArray[Any]:
    """A frame's samples as they are stored, `H×W` or `H×W×3`; YBR is converted to RGB."""
    from pydicom.pixels.utils import pixel_array

    from deployments.pictures import dicom_codecs

    dicom_codecs.register()
    plugin = PLUGINS.get(data_set.file_meta.TransferSyntaxUID, "")
    samples: NDArray[Any] = pixel_array(data_set, index=page, decoding_plugin=plugin)
    return samples


def _group(data_set: Any, page: int, sequence: str) -> Any:
    """The data set that holds a frame's attributes: in enhanced files, an item of its groups, or of those of all."""
    per_frame = data_set.get("PerFrameFunctionalGroupsSequence") or []
    shared = data_set.get("SharedFunctionalGroupsSequence") or []
    for groups in [*per_frame[page : page + 1], *shared[:1]]:
        if groups.get(sequence):
            return groups[sequence].value[0]
    return data_set


def _rescaled(stored: NDArray[Any], data_set: Any, page: int) -> NDArray[Any]:
    """PS3.3 C.11.1: the modality's values."""
    table = data_set.get("ModalityLUTSequence")
    if table:
        return _looked_up(stored, *_table(table[0], data_set))
    group = _group(data_set, page, "PixelValueTransformationSequence")
    slope, intercept = _number(group, "RescaleSlope", 1.0), _number(group, "RescaleIntercept", 0.0)
    if slope == 1 and intercept == 0:
        return stored
    return (stored.astype(np.float32) if stored.dtype.itemsize <= 2 else stored.astype(np.float64)) * slope + intercept


def _in_window(
    samples: NDArray[Any], data_set: Any, options: PictureOptions
) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """PS3.3 C.11.2: the samples, and the linear window for them."""
    is_own = options.window != "auto"
    tables = data_set.get("VOILUTSequence")
    if tables and not is_own:
        first, table = _table(tables[0], data_set)
        return _looked_up(samples, first, table), (0.0, 2.0 ** int(tables[0].LUTDescriptor[2]) - 1)
    group = _group(data_set, options.page_number(), "FrameVOILUTSequence")
    center, width = _number(group, "WindowCenter", math.nan), _number(group, "WindowWidth", math.nan)
    function = str(group.get("VOILUTFunction") or "LINEAR").upper()
    if not width > 0 or math.isnan(center):
        return samples, None
    if function == "SIGMOID":
        if is_own:
            return samples, None
        # C.11.2.1.3.1; the exponent is bounded, so that it does not overflow.
        exponent = np.clip(-4 * (samples.astype(np.float32) - center) / width, -80, 80)
        return 1 / (1 + np.exp(exponent)), (0.0, 1.0)
    # C.11.2.1.2.1; a width of 1 is a threshold.
    half = (max(1.0, width) - 1) / 2
    low, high = center - 0.5 - half, center - 0.5 + max(half, 1e-6)
    if function == "LINEAR_EXACT":
        low, high = center - width / 2, center + width / 2
    # Of numbers that are too large, or too close for their size, there is no window.
    return samples, ((low, high) if low < high and math.isfinite(LEVELS * (high - low)) else None)


def _valid(stored: NDArray[Any], data_set: Any) -> NDArray[np.bool_] | None:
    """Which pixels are no padding (PS3.3 C.7.5.1.1.2); None if all are."""
    padding = data_set.get("PixelPaddingValue")
    if padding is None:
        return None
    limit = data_set.get("PixelPaddingRangeLimit", padding)
    low, high = sorted((int(padding), int(limit)))
    valid: NDArray[np.bool_] = (stored < low) | (stored > high)
    return None if valid.all() or not valid.any() else valid


def _number(data_set: Any, name: str, default: float) -> float:
    """An attribute's value, or the first of several."""
    value: Any = data_set.get(name)
    if value is None or value == "":
        return default
    return float(value[0]) if isinstance(value, MutableSequence) else float(value)


def _table(item: Any, data_set: Any) -> tuple[int, NDArray[Any]]:
    """A lookup table's first input value and its entries (PS3.3 C.11.1.1.1)."""
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if data_set.original_encoding[1] is not False else ">"
        table = np.frombuffer(data, f"{order}u2").astype(np.uint16)
    else:
        table = np.asarray(data, np.uint16)
    return first, table[: entries or 2**16]


def _looked_up(samples: NDArray[Any], first: int, table: NDArray[Any]) -> NDArray[Any]:
    """The table's entries for the samples; those beyond either end get the entry there."""
    index = np.clip(np.rint(samples).astype(np.int64) - first, 0, len(table) - 1)
    result: NDArray[Any] = table[index]
    return result


def _by_palette(stored: NDArray[Any], data_set: Any) -> NDArray[np.uint8]:
    """PS3.3 C.7.6.3.1.5: the colours of a palette, of its entries the high byte."""
    if "RedPaletteColorLookupTableData" not in data_set:
        from pydicom.pixels.processing import apply_color_lut

        return _high_byte(np.asarray(apply_color_lut(stored, data_set)))[:, :, :3]
    channels = []
    for name in ("Red", "Green", "Blue"):
        entries, first, _ = (int(number) for number in data_set[f"{name}PaletteColorLookupTableDescriptor"].value)
        entries = entries or 2**16
        data = data_set[f"{name}PaletteColorLookupTableData"].value
        # Entries of 8 bits are stored in bytes, or in words.
        table = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else np.dtype("<u2"))[:entries]
        channels.append(_looked_up(stored, first, table))
    return _high_byte(np.stack(channels, axis=-1), int(data_set.RedPaletteColorLookupTableDescriptor[2]))


def _high_byte(colours: NDArray[Any], bits: int = 16) -> NDArray[np.uint8]:
    if colours.dtype == np.uint8 or bits <= 8:
        return colours.astype(np.uint8)
    return (colours >> (bits - 8)).astype(np.uint8)
