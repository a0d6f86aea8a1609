"""DICOM: one frame, with the values that it means and the window that it asks for."""

import io
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    HEVCMP51,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from deployments.errors import InvalidImage, InvalidRequest
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import dicom
from harness.images import encoded, picture

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 24, 32
GREY = RNG.integers(0, 4096, (HEIGHT, WIDTH), dtype=np.uint16)
COLOURS = np.asarray(picture(WIDTH, HEIGHT))


def data_set(pixels: Any, syntax: Any = ExplicitVRLittleEndian, **attributes: Any) -> Dataset:
    """A data set of these samples, `H×W`, `N×H×W` or `H×W×3`, and of further attributes."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = CTImageStorage, "1.2.3", "CT"
    is_colour = pixels.ndim == 3 and pixels.shape[2] == 3
    made.Rows, made.Columns = pixels.shape[:2] if is_colour or pixels.ndim == 2 else pixels.shape[1:]
    made.SamplesPerPixel = 3 if is_colour else 1
    if is_colour:
        made.PlanarConfiguration = 0
    if pixels.ndim == 3 and not is_colour:
        made.NumberOfFrames = len(pixels)
    made.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored = made.BitsAllocated
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in attributes.items():
        setattr(made, name, value)
    made.HighBit = made.BitsStored - 1
    if "PixelData" not in attributes:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        made.PixelData = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(order))).tobytes()
        made["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return made


def written(made: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def read(made: Dataset | bytes, **options: Any) -> Any:
    data = made if isinstance(made, bytes) else written(made)
    chosen = PictureOptions(**options)
    assert dicom.matches(data)
    raster = dicom.read(io.BytesIO(data), chosen)
    assert dicom.size(io.BytesIO(data), chosen) == raster.samples.shape[1::-1]
    return raster


# ---- samples


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_samples_are_as_stored(dtype: Any, syntax: Any) -> None:
    info = np.iinfo(dtype)
    samples = RNG.integers(info.min, info.max, (HEIGHT, WIDTH), dtype=dtype, endpoint=True)

    raster = read(data_set(samples, syntax))

    np.testing.assert_array_equal(raster.samples[:, :, 0], samples)
    assert (raster.window, raster.valid, raster.inverted) == (None, None, False)


def test_bits_beyond_those_stored_do_not_count() -> None:
    raster = read(data_set(GREY | 0xF000, BitsStored=12))

    np.testing.assert_array_equal(raster.samples[:, :, 0], GREY)
    assert raster.full == (0, 4095)


def test_signed_samples_of_fewer_bits_keep_their_sign() -> None:
    signed = RNG.integers(-2048, 2048, (HEIGHT, WIDTH), dtype=np.int16)
    stored = (signed.view(np.uint16) & 0x0FFF).view(np.int16)

    np.testing.assert_array_equal(read(data_set(stored, BitsStored=12)).samples[:, :, 0], signed)


def test_rescaled_values_are_those_of_the_modality() -> None:
    made = data_set(GREY, RescaleSlope=2, RescaleIntercept=-1024)

    np.testing.assert_allclose(read(made).samples[:, :, 0], apply_modality_lut(GREY, made))


def test_a_table_of_the_modality_is_applied() -> None:
    made = data_set(GREY, ModalityLUTSequence=Sequence([lut(100, 16, np.arange(500) * 7)]))

    expected = np.clip(GREY.astype(int) - 100, 0, 499) * 7
    np.testing.assert_array_equal(read(made).samples[:, :, 0], expected)


def test_monochrome1_is_inverted() -> None:
    assert read(data_set(GREY, PhotometricInterpretation="MONOCHROME1")).inverted


@pytest.mark.parametrize("limit", [None, 20])
def test_padding_is_not_valid(limit: int | None) -> None:
    attributes: dict[str, Any] = {"PixelPaddingValue": 0} | ({"PixelPaddingRangeLimit": limit} if limit else {})
    samples = GREY.copy()
    samples[0, :5] = (0, 0, 20, 21, 7)

    raster = read(data_set(samples, **attributes))

    np.testing.assert_array_equal(raster.valid, samples > (limit or 0))


# ---- windows


def lut(first: int, bits: int, entries: Any) -> Dataset:
    table = Dataset()
    table.LUTDescriptor = [len(entries), first, bits]
    table.LUTData = [int(entry) for entry in entries]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    return table


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT"])
@pytest.mark.parametrize(("center", "width"), [(1e20, 1.0), (1e308, 1.5e308), (-1e308, 1.7e308)])
def test_a_window_of_numbers_beyond_all_sense_is_none(function: str, center: float, width: float) -> None:
    assert read(data_set(GREY, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)).window is None


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(40.0, 400.0), (1000.5, 2001.0), (600.0, 2.0)])
def test_the_window_shows_what_the_standard_says(function: str | None, center: float, width: float) -> None:
    made = data_set(GREY, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=center, WindowWidth=width, BitsStored=12)
    if function:
        made.VOILUTFunction = function
    with np.errstate(over="ignore"):
        expected = apply_windowing(apply_modality_lut(GREY, made), made)
    expected = (expected + 1024) / 4095

    raster = read(made)
    low, high = raster.window

    shown = ((raster.samples[:, :, 0].astype(float) - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(shown, expected, atol=2e-3)


def test_the_first_of_several_windows_counts() -> None:
    raster = read(data_set(GREY, WindowCenter=[100, 2000], WindowWidth=[51, 9]))

    assert raster.window == (74.5, 124.5)


def test_a_window_of_width_one_is_a_threshold() -> None:
    low, high = read(data_set(GREY, WindowCenter=100, WindowWidth=1)).window

    assert 99 < low < high < 100


@pytest.mark.parametrize(("center", "width"), [(100, 0), (100, -5)])
def test_a_window_without_width_is_ignored(center: float, width: float) -> None:
    assert read(data_set(GREY, WindowCenter=center, WindowWidth=width)).window is None


@pytest.mark.parametrize("bits", [8, 12])
def test_a_table_of_the_window_is_applied(bits: int) -> None:
    entries = np.arange(1000)[::-1] % 2**bits
    made = data_set(GREY, VOILUTSequence=Sequence([lut(50, bits, entries)]), WindowCenter=9, WindowWidth=9)

    raster = read(made)

    np.testing.assert_array_equal(raster.samples[:, :, 0], entries[np.clip(GREY.astype(int) - 50, 0, 999)])
    assert raster.window == (0, 2**bits - 1)


@pytest.mark.parametrize("window", ["full", (0.0, 500.0)])
def test_a_window_of_the_request_is_for_the_values_of_the_modality(window: Any) -> None:
    made = data_set(GREY, WindowCenter=100, WindowWidth=50, VOILUTFunction="SIGMOID")
    tabled = data_set(GREY, VOILUTSequence=Sequence([lut(50, 8, np.arange(99))]))

    for one in (made, tabled):
        np.testing.assert_array_equal(read(one, window=window).samples[:, :, 0], GREY)


def test_a_window_on_bytes_is_one_that_is_applied() -> None:
    raster = read(data_set(GREY.astype(np.uint8), WindowCenter=100, WindowWidth=51))

    assert raster.samples.dtype != np.uint8
    assert raster.window == (74.5, 124.5)


# ---- frames

FRAMES = RNG.integers(0, 4096, (3, HEIGHT, WIDTH), dtype=np.uint16)


def test_a_page_is_a_frame() -> None:
    for page in range(3):
        np.testing.assert_array_equal(read(data_set(FRAMES), page=page).samples[:, :, 0], FRAMES[page])
    with pytest.raises(InvalidRequest, match="page: is 3, and the file has 3, counted from 0"):
        read(data_set(FRAMES), page=3)


def test_a_frame_of_an_enhanced_file_has_its_own_values_and_window() -> None:
    def groups(slope: float, center: float) -> Dataset:
        transformation, window, made = Dataset(), Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, 1
        window.WindowCenter, window.WindowWidth = center, 101
        made.PixelValueTransformationSequence = Sequence([transformation])
        made.FrameVOILUTSequence = Sequence([window])
        return made

    made = data_set(FRAMES, PerFrameFunctionalGroupsSequence=Sequence([groups(2, 50), groups(3, 150), groups(4, 250)]))

    raster = read(made, page=1)

    np.testing.assert_allclose(raster.samples[:, :, 0], FRAMES[1] * 3.0 + 1)
    assert raster.window == (99.5, 199.5)


# ---- colours


def test_rgb_is_as_stored() -> None:
    np.testing.assert_array_equal(read(data_set(COLOURS)).samples, COLOURS)


def test_planes_of_colours_are_interleaved() -> None:
    planes = np.ascontiguousarray(COLOURS.transpose(2, 0, 1))
    made = data_set(COLOURS, PlanarConfiguration=1, PixelData=planes.tobytes())

    np.testing.assert_array_equal(read(made).samples, COLOURS)


def test_ybr_is_converted() -> None:
    ybr = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))

    samples = read(data_set(ybr, PhotometricInterpretation="YBR_FULL")).samples

    assert np.abs(samples.astype(int) - COLOURS).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_applied(bits: int) -> None:
    entries = RNG.integers(0, 2**bits, (3, 300))
    indices = RNG.integers(0, 400, (HEIGHT, WIDTH), dtype=np.uint16)
    made = data_set(indices, PhotometricInterpretation="PALETTE COLOR")
    for name, table in zip(("Red", "Green", "Blue"), entries, strict=True):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [300, 20, bits])
        made[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(made, f"{name}PaletteColorLookupTableData", table.astype(f"<u{bits // 8}").tobytes())

    index = np.clip(indices.astype(int) - 20, 0, 299)
    expected = np.stack([table[index] >> (bits - 8) for table in entries], axis=-1)

    np.testing.assert_array_equal(read(made).samples, expected)


# ---- compression


def compressed(frame: bytes | bytearray, pixels: Any, syntax: Any, **attributes: Any) -> Dataset:
    made = data_set(pixels, syntax, PixelData=encapsulate([bytes(frame)]), **attributes)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return made


@pytest.mark.parametrize(
    ("syntax", "frame"),
    [
        (JPEGLosslessSV1, lambda: imagecodecs.ljpeg_encode(GREY, bitspersample=16)),
        (JPEGLosslessSV1, lambda: imagecodecs.jpeg8_encode(GREY, lossless=True, bitspersample=12)),
        (JPEGLSLossless, lambda: imagecodecs.jpegls_encode(GREY)),
        (JPEG2000Lossless, lambda: imagecodecs.jpeg2k_encode(GREY, level=0, codecformat="J2K", reversible=True)),
    ],
    ids=["ljpeg", "jpeg-lossless-12", "jpeg-ls", "jpeg-2000"],
)
def test_lossless_compression_gives_the_samples(syntax: Any, frame: Any) -> None:
    made = compressed(bytes(frame()), GREY, syntax, BitsStored=16 if "jpeg8" not in frame.__code__.co_names else 12)

    np.testing.assert_array_equal(read(made).samples[:, :, 0], GREY)


def test_run_lengths_give_the_samples() -> None:
    made = data_set(GREY)
    made.compress(RLELossless)

    np.testing.assert_array_equal(read(made).samples[:, :, 0], GREY)


def test_12_bit_jpeg_gives_nearly_the_samples() -> None:
    smooth = (np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) * 60).astype(np.uint16)
    frame = imagecodecs.jpeg8_encode(smooth, level=95, bitspersample=12)

    samples = read(compressed(frame, smooth, JPEGExtended12Bit, BitsStored=12)).samples

    assert np.abs(samples[:, :, 0].astype(int) - smooth).mean() < 30


@pytest.mark.parametrize("interpretation", ["YBR_FULL_422", "RGB"])
def test_baseline_jpeg_has_its_colours(interpretation: str) -> None:
    image = Image.fromarray(COLOURS)
    keep = {"keep_rgb": True} if interpretation == "RGB" else {}
    frame = encoded(image, "JPEG", quality=95, **keep)
    expected = COLOURS if interpretation == "RGB" else np.asarray(Image.open(io.BytesIO(frame)))

    samples = read(compressed(frame, COLOURS, JPEGBaseline8Bit, PhotometricInterpretation=interpretation)).samples

    assert np.abs(samples.astype(int) - expected).mean() < 12


def test_baseline_jpeg_of_grey_gives_nearly_the_samples() -> None:
    grey = np.ascontiguousarray(COLOURS[:, :, 0])
    frame = encoded(Image.fromarray(grey), "JPEG", quality=95)

    samples = read(compressed(frame, grey, JPEGBaseline8Bit)).samples

    np.testing.assert_array_equal(samples[:, :, 0], np.asarray(Image.open(io.BytesIO(frame))))


def test_a_video_in_dicom_is_refused_by_its_name() -> None:
    made = compressed(b"\0\0\0\1", COLOURS, HEVCMP51)

    with pytest.raises(InvalidImage, match=r"is a DICOM file compressed as HEVC.*not read; send the video"):
        dicom.size(io.BytesIO(written(made)), PictureOptions())


# ---- other files


def test_a_file_without_the_preamble_is_read() -> None:
    np.testing.assert_array_equal(read(written(data_set(GREY))[132:]).samples[:, :, 0], GREY)


def test_a_file_without_a_picture_is_refused() -> None:
    made = data_set(GREY, Modality="SR")
    for name in ("Rows", "Columns", "PixelData"):
        delattr(made, name)

    with pytest.raises(InvalidImage, match=r"is a DICOM file without a picture \(modality SR\)"):
        dicom.size(io.BytesIO(written(made)), PictureOptions())


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(share: float) -> None:
    data = written(data_set(GREY))

    with pytest.raises(InvalidImage, match="image: is "):
        dicom.read(io.BytesIO(data[: int(share * len(data))]), PictureOptions())


@pytest.mark.parametrize("data", [b"", b"DICM", bytes(200), encoded(picture(9, 9))])
def test_other_files_are_not_taken(data: bytes) -> None:
    assert not dicom.matches(data)
