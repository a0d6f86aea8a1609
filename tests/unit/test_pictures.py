"""From a file to pixels: the window of samples of more than 8 bits, and TIFF, PNG and PGM of every sort."""

import io
import struct
import tracemalloc
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rasterio.io import MemoryFile

from deployments.errors import DeadlineExceeded, InvalidImage, InvalidRequest, TooLarge
from deployments.messages.picture_options import PictureOptions, Plane, window_text
from deployments.parsing.deadline import Deadline
from deployments.parsing.images import identify
from deployments.pictures import reader
from deployments.pictures.raster import Picture, Raster
from deployments.pictures.steps import show
from deployments.settings import Limits
from harness.images import encoded, picture
from tests.pictures import contrast, scene, tiff

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]

PICTURE = picture(40, 30)
RGB8 = np.asarray(PICTURE)


def read(data: bytes, **options: Any) -> Picture:
    return reader.read(io.BytesIO(data), PictureOptions(**options), 64_000_000)


def pixels(data: bytes, **options: Any) -> NDArray[np.uint8]:
    return read(data, **options).pixels


def grey(data: bytes, **options: Any) -> NDArray[np.uint8]:
    """The one channel of a grey picture."""
    shown = pixels(data, **options)
    assert (shown == shown[:, :, :1]).all()
    return shown[:, :, 0]


def of_array(array: NDArray[Any], **options: Any) -> Picture:
    return identify(array, Limits(), options=PictureOptions(**options)).read(Limits())


def png16(array: NDArray[np.uint16]) -> bytes:
    return bytes(imagecodecs.png_encode(array))


def geotiff(bands: NDArray[Any], mask: NDArray[np.bool_] | None = None, **options: Any) -> bytes:
    """A GeoTIFF as GDAL writes it, of `C×H×W`."""
    count, height, width = bands.shape
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype, **options}
        with memory.open(**profile) as file:
            file.write(bands)
            if mask is not None:
                file.write_mask(mask)
        return bytes(memory.read())


def windowed(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """The rule for the pixels, once more."""
    scaled = np.nan_to_num((values.astype(np.float64) - low) * 255 / (high - low), nan=0, posinf=255, neginf=0)
    return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)


def robust(values: NDArray[Any]) -> tuple[float, float]:
    """The quantiles of the finite values, by numpy; if they are one value, the extremes."""
    finite = values[np.isfinite(values.astype(np.float64))].ravel()
    low, high = np.quantile(finite, 0.001, method="lower"), np.quantile(finite, 0.999, method="higher")
    return (float(low), float(high)) if low < high else (float(finite.min()), float(finite.max()))


# ---- the window


CASES: dict[str, Callable[[], bytes]] = {
    "a dim 12-bit camera": lambda: png16(scene(250, 500, np.uint16)),
    "a CT slice": lambda: tiff(scene(-1000, 1300, np.int16)),
    "reflectance with one value above 1": lambda: tiff(np.where(np.eye(240, 320) * 0, 0, with_one(1.02))),
    "a height model": lambda: tiff(scene(1200, 1800, np.float32)),
    "float64": lambda: tiff(scene(0, 255, np.float64)),
    "float16": lambda: tiff(scene(0, 1, np.float16)),
    "int8": lambda: tiff(scene(-100, 100, np.int8)),
    "int32": lambda: tiff(scene(-70_000, 1_000_000, np.int32)),
    "uint32 above 2^31": lambda: tiff(scene(2**31 - 1000, 2**31 + 1000, np.uint32)),
    "uint64": lambda: tiff(scene(10_000, 90_000, np.uint64)),
    "four bands": lambda: tiff(np.stack([scene(0, 255, np.uint8)] * 4, 2), planarconfig="contig"),
    "a 16-bit photograph": lambda: tiff(np.stack([scene(0, 65_535, np.uint16)] * 3, 2), photometric="rgb"),
    "dim 16-bit colour": lambda: png16(np.stack([scene(100, 4000, np.uint16)] * 3, 2)),
    "PGM of 16 bits": lambda: b"P5 320 240 4095\n" + scene(0, 300, ">u2").tobytes(),
    "a PFM": lambda: b"Pf\n320 240\n-1.0\n" + scene(5, 6, "<f4")[::-1].tobytes(),
}


def with_one(value: float) -> NDArray[np.float32]:
    array = scene(0, 1, np.float32)
    array[0, 0] = value
    return array


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_seen_whatever_its_samples_are(name: str) -> None:
    shown = pixels(CASES[name]())

    assert shown.shape == (240, 320, 3)
    assert 80 < contrast(shown) < 200
    # The dark rectangle is darker than the ground, too.
    assert np.median(shown[150:190, 50:120]) < np.median(shown[150:190, 180:300]) - 40


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_hot_pixels_infinite_values_and_nan_do_not_decide(dtype: Any) -> None:
    array = scene(1000, 1200, dtype)
    before = of_array(array)
    rng = np.random.default_rng(0)
    bad = rng.permutation(array.size)[:30]
    array.ravel()[bad] = 32_000
    if np.dtype(dtype).kind == "f":
        array.ravel()[bad[:20]] = [np.nan, np.inf, -np.inf, 1e30] * 5
        array[:20] = np.nan
    after = of_array(array)

    good = np.ones(array.shape, bool)
    good.ravel()[bad] = False
    good[:20] = False
    assert np.abs(after.pixels.astype(int) - before.pixels)[good].max() <= 3


def test_the_window_is_the_quantiles_of_the_values() -> None:
    array = np.random.default_rng(1).permutation(10_001).reshape(73, 137).astype(np.uint16) + 500

    shown = of_array(array)

    assert shown.window == (510, 10_490)
    np.testing.assert_array_equal(shown.pixels[:, :, 0], windowed(array, 510, 10_490))


def test_a_full_range_16_bit_photograph_is_the_8_bit_one() -> None:
    wide = RGB8.astype(np.uint16) * 257

    shown = read(png16(wide))

    assert shown.window == (0, 65_535)
    np.testing.assert_array_equal(shown.pixels, RGB8)
    np.testing.assert_array_equal(pixels(tiff(wide, photometric="rgb")), RGB8)
    assert np.abs(pixels(png16(RGB8.astype(np.uint16) * np.uint16(256))).astype(int) - RGB8).max() <= 1


@pytest.mark.parametrize("top", [255, 4095, 16_383, 32_767, 49_151])
def test_one_level_more_changes_a_picture_by_little(top: int) -> None:
    levels = np.linspace(0, 1, 30_000).reshape(150, 200)
    one, other = (of_array((levels * most).astype(np.uint16)).pixels.astype(int) for most in (top, top + 1))

    assert np.abs(one - other).max() <= 2


def test_the_brightness_of_a_picture_grows_evenly_with_its_range() -> None:
    levels = np.linspace(0, 1, 30_000).reshape(150, 200)
    middles = [of_array((levels * most).astype(np.uint16)).pixels[75, 100, 0] for most in range(300, 65_536, 300)]

    assert max(abs(int(a) - int(b)) for a, b in pairwise(middles)) <= 8


def test_colours_share_one_window_so_that_hue_is_kept() -> None:
    array = np.zeros((100, 100, 3), np.uint16)
    array[...] = np.linspace(0, 1000, 100)[:, None, None]
    array[:, 50:] = (array[:, 50:] * (1, 0.5, 0.25)).astype(np.uint16)

    shown = of_array(array).pixels.astype(float)

    np.testing.assert_allclose(shown[80:, 60:, 1] / shown[80:, 60:, 0], 0.5, atol=0.02)
    np.testing.assert_allclose(shown[80:, 60:, 2] / shown[80:, 60:, 0], 0.25, atol=0.02)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.int64, np.float16, np.float32])
@pytest.mark.parametrize("value", [0, 1, 30_000])
def test_a_constant_picture_is_even(dtype: Any, value: int) -> None:
    shown = of_array(np.full((5, 7), value, dtype))

    assert (shown.pixels == 128).all()
    assert shown.window is not None
    assert shown.window[0] < shown.window[1]


def test_a_picture_without_any_value_is_black() -> None:
    assert (of_array(np.full((5, 7), np.nan, np.float32)).pixels == 0).all()
    assert (pixels(geotiff(np.full((1, 5, 7), -9999, np.int16), nodata=-9999)) == 0).all()


def test_bool_is_black_and_white() -> None:
    array = np.arange(12).reshape(3, 4) % 3 == 0

    shown = of_array(array)

    assert shown.window is None
    np.testing.assert_array_equal(shown.pixels[:, :, 0], array * 255)


def test_small_bright_objects_on_black_are_seen() -> None:
    array = np.zeros((300, 300), np.uint16)
    array[100:104, 100:104] = 900

    assert (of_array(array).pixels[100:104, 100:104] == 255).all()


@pytest.mark.parametrize(("dtype", "mark"), [(np.float32, -9999), (np.int16, -32_768), (np.float32, -3.4028235e38)])
def test_usual_marks_for_no_data_do_not_decide_even_if_the_file_does_not_tell(dtype: Any, mark: float) -> None:
    array = scene(200, 900, dtype)
    array[:60] = mark

    shown = of_array(array)

    assert contrast(shown.pixels) > 80
    assert (shown.pixels[:60] == 0).all()


def test_a_value_like_a_mark_that_lies_among_others_counts() -> None:
    array = np.linspace(-12_000, -9_999, 10_000).reshape(100, 100).astype(np.float32)

    assert of_array(array).window == robust(array)


@pytest.mark.parametrize("window", ["auto", "full"])
def test_8_bits_stay_as_they_are(window: Any) -> None:
    for data in (encoded(PICTURE), encoded(PICTURE, "TIFF"), tiff(RGB8, photometric="rgb", compression="zstd")):
        shown = read(data, window=window)
        assert shown.window is None
        np.testing.assert_array_equal(shown.pixels, RGB8)
    dark = (RGB8 // 20)[:, :, 0]
    np.testing.assert_array_equal(grey(tiff(dark), window=window), dark)
    np.testing.assert_array_equal(of_array(dark, window=window).pixels[:, :, 0], dark)


def test_a_window_that_is_given_overrides_whatever_the_type() -> None:
    for dtype in (np.uint8, np.uint16, np.int32, np.float32):
        array = np.arange(200).reshape(10, 20).astype(dtype)
        shown = of_array(array, window=(50, 150.5))
        assert shown.window == (50, 150.5)
        np.testing.assert_array_equal(shown.pixels[:, :, 0], windowed(array, 50, 150.5))


def test_the_full_window_is_the_types_range_or_the_values_own() -> None:
    assert of_array(scene(0, 500, np.uint16), window="full").window == (0, 65_535)
    assert of_array(scene(0, 500, np.int16), window="full").window == (-32_768, 32_767)
    array = with_one(7.5)
    array[3, 3] = np.inf
    assert of_array(array, window="full").window == (float(np.float32(array[np.isfinite(array)].min())), 7.5)


def test_the_window_of_an_answer_shows_the_same_pixels_again() -> None:
    data = tiff(scene(0.1234567, 7.7654321, np.float32))
    first = read(data)
    assert first.window is not None

    again = reader.read(io.BytesIO(data), PictureOptions.parse(window=window_text(first.window)), 10**6)

    np.testing.assert_array_equal(again.pixels, first.pixels)


def test_a_large_picture_needs_little_memory_besides_its_pixels() -> None:
    array = np.arange(4000 * 3000, dtype=np.float32).reshape(3000, 4000)
    tracemalloc.start()

    shown = of_array(array)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48_000_000 + 4 * 36_000_000
    low, high = robust(array)
    assert shown.window is not None
    assert np.abs(np.array(shown.window) - (low, high)).max() < 20


# ---- options


def test_options_are_read_from_text() -> None:
    assert PictureOptions.parse() == PictureOptions.parse("", " ", "", "") == PictureOptions()
    parsed = PictureOptions.parse("-160,240.5", "4, 3,2", "c=1,t=7", "#ff8000")
    assert parsed == PictureOptions((-160, 240.5), (4, 3, 2), Plane(1, 0, 7), (255, 128, 0))
    assert parsed.text() == "window=-160,240.5&bands=4,3,2&page=c=1,z=0,t=7&background=#ff8000"
    assert PictureOptions.parse("full", "2", "3").text() == "window=full&bands=2&page=3"
    assert PictureOptions().text() == ""


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(("window", text) for text in ("Auto", "1", "1,2,3", "5,5", "7,3", "nan,1", "0,inf", "1e999,2", "a,b", "1;2")),
        ("window", "-1e308,1e308"),
        *(("bands", text) for text in ("0", "1,2", "1,2,3,4", "-1", "1,,2", "1.5", "red", "99999")),
        *(("page", text) for text in ("-1", "1.0", "99999", "first", "c=1,c=2", "x=1", "c=-1", "c=99999")),
        *(("background", text) for text in ("white", "#fff", "ffffff", "#12345g", "#1234567")),
    ],
)
def test_options_that_are_none_are_refused_by_their_name(field: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        PictureOptions.parse(**{field: text})


@pytest.mark.parametrize(
    "options",
    [
        {"window": (1,)},
        {"window": (2, 1)},
        {"window": None},
        {"bands": (1, 2)},
        {"bands": [1]},
        {"page": -1},
        {"page": True},
        {"page": Plane(-1)},
        {"background": (0, 0, 256)},
    ],
    ids=str,
)
def test_options_of_a_handle_call_are_checked(options: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{next(iter(options))}: "):
        PictureOptions(**options)


def test_options_are_part_of_the_name_if_they_are_not_the_defaults() -> None:
    data = tiff(scene(0, 900, np.uint16))
    ids = [
        identify(data, Limits(), options=options).image_id
        for options in (
            None,
            PictureOptions(),
            PictureOptions("full"),
            PictureOptions((0, 900)),
            PictureOptions(bands=(1,)),
        )
    ]

    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


# ---- TIFF


LAYOUTS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "many strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 32)},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "LZW": {"compression": "lzw"},
    "deflate with differences": {"compression": "zlib", "predictor": True, "tile": (32, 32)},
    "ZSTD": {"compression": "zstd", "rowsperstrip": 11},
    "LZMA": {"compression": "lzma"},
    "PackBits": {"compression": "packbits"},
}


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiff_of_every_type_and_layout(dtype: str, layout: str) -> None:
    options = LAYOUTS[layout]
    if options.get("predictor") and dtype in ("f2", "u8", "i8"):
        options = {**options, "predictor": False}
    array = scene(0, 120, dtype)[:50, 170:250]

    shown = read(tiff(array, **options))

    expected = array if dtype == "u1" else windowed(array, *(shown.window or ()))
    np.testing.assert_array_equal(shown.pixels[:, :, 0], expected)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"]),
    bands=st.integers(1, 6),
    low=st.floats(-30_000, 30_000),
    spread=st.floats(0, 60_000),
    planar=st.booleans(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 5),
)
def test_a_decoded_tiff_is_tifffiles_array_windowed(
    dtype: str, bands: int, low: float, spread: float, planar: bool, layout: str, size: tuple[int, int], seed: int
) -> None:
    noise = np.random.default_rng(seed).uniform(low, low + spread, (bands, *size))
    kind = np.dtype(dtype)
    limits = (np.iinfo if kind.kind in "iu" else np.finfo)(kind)
    array = noise.clip(float(limits.min), float(limits.max)).astype(kind)
    options = dict(LAYOUTS[layout])
    if kind.itemsize == 2 and kind.kind == "f":
        options.pop("predictor", None)
    if bands == 1:
        data = tiff(array[0], **options)
    elif planar:
        data = tiff(array, planarconfig="separate", **options)
    else:
        data = tiff(np.ascontiguousarray(array.transpose(1, 2, 0)), planarconfig="contig", **options)
    direct = tifffile.imread(io.BytesIO(data)).reshape(array.shape if planar or bands == 1 else (*size, bands))
    direct = direct if planar or bands == 1 else direct.transpose(2, 0, 1)
    chosen = direct[:3] if bands >= 3 else direct[:1]

    shown = read(data)

    if dtype == "u1":
        expected = chosen
        assert shown.window is None
    else:
        assert shown.window is not None
        if kind.kind != "u" and chosen.min() != chosen.max():
            assert shown.window == robust(chosen)
        expected = windowed(chosen, *shown.window)
    np.testing.assert_array_equal(shown.pixels, np.broadcast_to(expected.transpose(1, 2, 0), shown.pixels.shape))


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colours_of_tiff(planarconfig: str, dtype: Any) -> None:
    wide = RGB8.astype(dtype) * (257 if dtype == np.uint16 else 1)
    array = wide if planarconfig == "contig" else np.ascontiguousarray(wide.transpose(2, 0, 1))

    shown = read(tiff(array, photometric="rgb", planarconfig=planarconfig))

    expected = windowed(wide, *shown.window) if shown.window else wide
    np.testing.assert_array_equal(shown.pixels, expected)


def test_bands_are_the_first_three_or_those_that_are_asked_for() -> None:
    array = np.stack([np.full((20, 30), 10 * band, np.uint8) for band in range(1, 6)])
    for data in (tiff(array, planarconfig="separate"), geotiff(array), geotiff(array, interleave="band")):
        assert pixels(data)[0, 0].tolist() == [10, 20, 30]
        assert pixels(data, bands=(5, 1, 2))[0, 0].tolist() == [50, 10, 20]
        assert pixels(data, bands=(4,))[0, 0].tolist() == [40, 40, 40]
        with pytest.raises(InvalidRequest, match="bands: asks for band 6 of 5; the image is TIFF, 5 bands of uint8"):
            pixels(data, bands=(6,))
    assert pixels(tiff(array[:2], planarconfig="separate"))[0, 0].tolist() == [10, 10, 10]


def test_bands_of_other_pictures_are_their_colours() -> None:
    np.testing.assert_array_equal(pixels(encoded(PICTURE), bands=(3, 2, 1)), RGB8[:, :, ::-1])
    np.testing.assert_array_equal(grey(encoded(PICTURE, "TIFF"), bands=(2,)), RGB8[:, :, 1])
    np.testing.assert_array_equal(of_array(RGB8, bands=(3, 3, 3)).pixels[:, :, 0], RGB8[:, :, 2])
    with pytest.raises(InvalidRequest, match="bands: asks for band 4 of 3"):
        pixels(encoded(PICTURE), bands=(4,))


def test_of_rgb_and_near_infrared_the_rgb_is_shown() -> None:
    infrared = np.full((30, 40, 1), 200, np.uint8)
    data = tiff(np.concatenate([RGB8, infrared], 2), photometric="rgb", extrasamples=["unspecified"])

    np.testing.assert_array_equal(pixels(data), RGB8)


def test_three_bands_of_uint16_without_colours_are_red_green_and_blue() -> None:
    bands = np.ascontiguousarray((RGB8.astype(np.uint16) * 257).transpose(2, 0, 1))

    np.testing.assert_array_equal(pixels(geotiff(bands, photometric="minisblack")), RGB8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_alpha_shows_the_background(dtype: Any, extra: str) -> None:
    top = np.iinfo(dtype).max
    array = np.zeros((2, 3, 4), dtype)
    array[:, 0] = (top, 0, 0, top)
    array[:, 1] = (0, 0, 0, 0) if extra == "assocalpha" else (0, top, 0, 0)
    array[:, 2] = (0, 0, top // 3, top // 3) if extra == "assocalpha" else (0, 0, top, top // 3)
    data = tiff(array, photometric="rgb", extrasamples=[extra])

    assert pixels(data)[0].tolist() == [[255, 0, 0], [255, 255, 255], [170, 170, 255]]
    assert pixels(data, background=(0, 0, 30))[0, 1].tolist() == [0, 0, 30]


def test_grey_with_alpha_of_16_bits() -> None:
    array = np.full((20, 20, 2), 65_535, np.uint16)
    array[:, :10, 0] = np.linspace(0, 65_535, 10)
    array[:, 15:, 1] = 0
    for data in (tiff(array, extrasamples=["unassalpha"]), png16(array)):
        shown = pixels(data, background=(0, 9, 0))
        assert shown[0, 0].tolist() == [0, 0, 0]
        assert shown[0, 12].tolist() == [255, 255, 255]
        assert shown[0, 18].tolist() == [0, 9, 0]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_whichever_reader_it_comes_from_grey_with_alpha_is_three_colours(kind: Any) -> None:
    samples = np.zeros((2, 3, 2), kind)
    samples[:, 1:] = np.iinfo(kind).max
    samples[:, 2, 1] = 0
    samples[:, 0, 1] = np.iinfo(kind).max

    shown = show(Raster(samples), PictureOptions(background=(0, 9, 0)))

    assert shown.pixels[0].tolist() == [[0] * 3, [255] * 3, [0, 9, 0]]
    # The second band is alpha.
    alpha = show(Raster(samples), PictureOptions(bands=(2,), window="full"))
    assert alpha.pixels[0].tolist() == [[255] * 3, [255] * 3, [0] * 3]


def test_no_data_of_grey_with_alpha_is_black_in_all_colours() -> None:
    array = np.full((20, 20, 2), 1.0, np.float32)
    array[:, :10, 0] = np.linspace(0, 1, 10)
    array[3, 5, 0] = -7
    nodata = [(42113, "s", 0, "-7", True)]

    shown = pixels(tiff(array, extrasamples=["unassalpha"], extratags=nodata))

    assert shown[3, 5].tolist() == [0, 0, 0]
    assert shown[0, 9].tolist() == [255, 255, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_is_inverted_at_every_depth(dtype: Any) -> None:
    array = scene(0, 60_000 if dtype == np.uint16 else 255, dtype)
    as_black, as_white = pixels(tiff(array)), pixels(tiff(array, photometric="miniswhite"))

    np.testing.assert_array_equal(as_white, 255 - as_black)


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
def test_samples_of_odd_bits_use_their_range(bits: int) -> None:
    top = 2**bits - 1
    array = np.linspace(0, top, 30 * 64).round().astype(np.uint8 if bits <= 8 else np.uint16).reshape(30, 64)
    as_bits = np.unpackbits(array.astype(">u2").view(np.uint8).reshape(30, 64, 2), axis=2)[:, :, -bits:]
    strip = np.packbits(as_bits.reshape(30, -1), axis=1).tobytes()
    data = handmade(64, 30, {258: ("H", [bits])}, strip)

    np.testing.assert_array_equal(grey(data), windowed(array, 0, top))


def handmade(width: int, height: int, tags: dict[int, tuple[str, list[int]]], strip: bytes) -> bytes:
    """A TIFF of one strip, with tags byte by byte."""
    entries: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8]),
        259: ("H", [1]),
        262: ("H", [1]),
        273: ("I", [8]),
        277: ("H", [1]),
        278: ("I", [height]),
        279: ("I", [len(strip)]),
        **tags,
    }
    strip += b"\0" * (len(strip) % 2)
    values, lines = b"", []
    for code, (kind, numbers) in sorted(entries.items()):
        packed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            values, packed = values + packed, struct.pack("<I", 8 + len(strip) + len(values))
        lines.append(struct.pack("<HHI", code, {"H": 3, "I": 4}[kind], len(numbers)) + packed.ljust(4, b"\0"))
    start = 8 + len(strip) + len(values)
    return (
        struct.pack("<2sHI", b"II", 42, start)
        + strip
        + values
        + struct.pack("<H", len(lines))
        + b"".join(lines)
        + bytes(4)
    )


def test_a_palette_shows_its_colours() -> None:
    image = PICTURE.quantize(16)

    np.testing.assert_array_equal(pixels(encoded(image, "TIFF")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_colours_of_photographs_are_converted(mode: str) -> None:
    if mode == "LAB":
        pytest.importorskip("PIL.ImageCms")
    image = PICTURE.convert(mode) if mode != "LAB" else Image.merge("LAB", PICTURE.convert("YCbCr").split())
    shown = pixels(encoded(image, "TIFF"))

    assert shown.shape == (30, 40, 3)
    if mode != "LAB":
        assert np.abs(shown.astype(int) - RGB8).mean() < 4


def test_jpeg_in_tiff() -> None:
    for photometric in ("ycbcr", "rgb"):
        array = np.asarray(picture(64, 48)).transpose(2, 0, 1)
        data = geotiff(array, compress="jpeg", photometric=photometric, interleave="pixel", jpeg_quality=95)
        assert np.abs(pixels(data).astype(int) - array.transpose(1, 2, 0)).mean() < 8
    bands = np.stack([np.asarray(picture(64, 48))[:, :, 1]] * 5)
    data = geotiff(bands, compress="jpeg", interleave="band")
    assert np.abs(grey(data).astype(int) - bands[0]).mean() < 8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_near_infrared_is_no_alpha_even_if_gdal_declares_it_so(dtype: Any) -> None:
    infrared = np.linspace(10, 200, 40 * 30).reshape(1, 30, 40).astype(dtype)
    data = geotiff(np.concatenate([RGB8.transpose(2, 0, 1).astype(dtype), infrared]), photometric="rgb", alpha="yes")
    assert tifffile.TiffFile(io.BytesIO(data)).pages.first.extrasamples == (2,)

    shown = read(data)

    expected = windowed(RGB8, *shown.window) if shown.window else RGB8
    np.testing.assert_array_equal(shown.pixels, expected)


def test_the_orientation_of_a_16_bit_png() -> None:
    upright = scene(0, 900, np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.rot90(upright, 1).copy()), exif=exif)
    facts = reader.inspect(io.BytesIO(data), PictureOptions(), 10**6)

    assert (facts.kind, facts.width, facts.height) == ("png16", 320, 240)
    np.testing.assert_array_equal(pixels(data), of_array(upright).pixels)


def test_the_orientation_of_a_16_bit_png_that_stands_behind_its_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(scene(0, 900, np.uint16)), exif=exif)
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    behind = data[:at] + data[end:-12] + data[at:end] + data[-12:]

    np.testing.assert_array_equal(pixels(behind), pixels(data))
    facts = reader.inspect(io.BytesIO(behind), PictureOptions(), 10**6)
    assert (facts.width, facts.height) == (240, 320)


@pytest.mark.parametrize("compression", ["lerc", "jpeg2000", "webp", "png"])
def test_compressions_with_a_header_of_their_own(compression: str) -> None:
    array = np.asarray(picture(64, 48)).astype(np.uint8)
    four = np.dstack([array, array[:, :, :1]])
    if compression == "webp":
        data = tiff(
            four,
            photometric="rgb",
            extrasamples=["unspecified"],
            compression="webp",
            compressionargs={"lossless": True},
        )
    elif compression == "png":
        data = tiff((array[:, :, 0].astype(np.uint16) * 257), compression="png")
    elif compression == "jpeg2000":
        data = tiff((array[:, :, 0].astype(np.uint16) * 257), compression="jpeg2000")
    else:
        data = tiff(array[:, :, 0].astype(np.float32), compression="lerc")
    shown = read(data)
    if compression == "lerc":
        expected = windowed(array[:, :, 0], *(shown.window or ()))
    else:
        expected = array if compression == "webp" else array[:, :, 0]
    np.testing.assert_array_equal(shown.pixels if expected.ndim == 3 else shown.pixels[:, :, 0], expected)


def test_nodata_of_a_geotiff_does_not_decide() -> None:
    array = scene(300, 900, np.int16)
    array[:50] = -9999
    array[60, 10] = -9999
    shown = read(geotiff(array[None], nodata=-9999))
    assert contrast(shown.pixels) > 80
    assert (shown.pixels[array == -9999] == 0).all()
    floats = scene(300, 900, np.float32)
    floats[:50] = 1e20
    assert read(geotiff(floats[None], nodata=1e20)).window == robust(floats[50:])
    dark = scene(3000, 9000, np.uint16)
    dark[:50] = 0
    assert read(geotiff(dark[None], nodata=0)).window == robust(dark[50:])


def test_the_mask_of_a_geotiff_does_not_decide() -> None:
    array = scene(300, 900, np.float32)
    array[:50] = 70_000
    mask = np.ones(array.shape, bool)
    mask[:50] = False

    shown = read(geotiff(array[None], mask))

    assert shown.window == robust(array[50:])
    assert (shown.pixels[:50] == 0).all()
    with pytest.raises(InvalidRequest, match="page: is 1, and the file has 1"):
        read(geotiff(array[None], mask), page=1)


def test_nodata_does_not_change_8_bits() -> None:
    array = scene(0, 255, np.uint8)

    np.testing.assert_array_equal(grey(geotiff(array[None], nodata=int(array[0, 0]))), array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_tiff_of_many_bits(orientation: int) -> None:
    upright = np.arange(6 * 9, dtype=np.uint16).reshape(6, 9)
    stored: dict[int, Any] = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }
    data = tiff(np.ascontiguousarray(stored[orientation]), extratags=[(274, "H", 1, orientation, True)])
    facts = reader.inspect(io.BytesIO(data), PictureOptions(), 1000)

    assert (facts.width, facts.height) == (9, 6)
    np.testing.assert_array_equal(grey(data), windowed(upright, 0, 53))


# ---- pages


def pages_of(*levels: int, dtype: Any = np.uint8, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for level in levels:
            file.write(np.full((8, 9), level, dtype), photometric="minisblack", metadata=None, **options)
    return buffer.getvalue()


def test_a_page_is_counted_from_0() -> None:
    data = pages_of(10, 20, 30)

    assert [pixels(data, page=page)[0, 0, 0] for page in range(3)] == [10, 20, 30]
    with pytest.raises(InvalidRequest, match="page: is 3, and the file has 3, counted from 0"):
        pixels(data, page=3)
    with pytest.raises(InvalidRequest, match="page: c, z and t are for OME-TIFF"):
        pixels(data, page=Plane(1))
    with pytest.raises(InvalidRequest, match="page: c, z and t are for OME-TIFF"):
        pixels(encoded(PICTURE), page=Plane(1))


def test_smaller_versions_are_no_pages() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for level, size, kind in ((10, 16, 0), (11, 8, 1), (20, 16, 0)):
            array = np.full((size, size), level, np.uint8)
            file.write(array, photometric="minisblack", subfiletype=kind, metadata=None)
    data = buffer.getvalue()

    assert pixels(data)[0, 0, 0] == 10
    assert pixels(data, page=1)[0, 0, 0] == 20
    with pytest.raises(InvalidRequest, match="page: is 2, and the file has 2"):
        pixels(data, page=2)


def test_the_picture_behind_a_preview_is_read() -> None:
    large, preview = scene(0, 900, np.uint16), np.zeros((24, 32), np.uint8)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(preview, photometric="minisblack", subfiletype=1, subifds=1, metadata=None)
        file.write(large, photometric="minisblack", subfiletype=0, metadata=None)
    data = buffer.getvalue()

    facts = reader.inspect(io.BytesIO(data), PictureOptions(), 10**6)

    assert (facts.width, facts.height) == (320, 240)
    assert contrast(pixels(data)) > 80


def test_a_file_of_a_preview_alone_shows_it() -> None:
    assert pixels(tiff(np.full((8, 9), 77, np.uint8), subfiletype=1))[0, 0, 0] == 77


@pytest.mark.parametrize("axes", ["TCZYX", "CTZYX", "ZCTYX", "TZCYX"])
def test_planes_of_ome_tiff(axes: str) -> None:
    sizes = {"T": 2, "C": 3, "Z": 4, "Y": 8, "X": 9}
    shape = [sizes[axis] for axis in axes]
    array = np.zeros(shape, np.uint8)
    planes = np.indices(shape[:3])
    values = dict(zip(axes, planes, strict=False))
    array[...] = (values["C"] * 100 + values["Z"] * 10 + values["T"])[:, :, :, None, None]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, ome=True, photometric="minisblack", metadata={"axes": axes})
    data = buffer.getvalue()

    for plane in (Plane(), Plane(1, 2, 1), Plane(2, 3, 0), Plane(0, 0, 1)):
        assert pixels(data, page=plane)[0, 0, 0] == plane.c * 100 + plane.z * 10 + plane.t
    with pytest.raises(InvalidRequest, match="page: c is 3, and the image has 3, counted from 0"):
        pixels(data, page=Plane(3))


def test_planes_of_imagej() -> None:
    array = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)[:, :, :, None, None] * np.ones((8, 9), np.uint8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, imagej=True, metadata={"axes": "TZCYX"})

    assert pixels(buffer.getvalue(), page=Plane(2, 3, 1))[0, 0, 0] == array[1, 3, 2, 0, 0]


def test_pixels_behind_an_ome_description_that_is_no_xml_are_read() -> None:
    data = tiff(np.full((8, 9), 50, np.uint8), description="<OME but no xml")

    assert pixels(data)[0, 0, 0] == 50
    with pytest.raises(InvalidImage, match="image: its OME description cannot be read"):
        pixels(data, page=Plane(1))


# ---- what is refused


@pytest.mark.parametrize("dtype", ["c8", "c16"])
def test_complex_numbers_are_refused_by_their_name(dtype: str) -> None:
    array = np.zeros((5, 8, 9), dtype)
    name = {"c8": "complex64", "c16": "complex128"}[dtype]

    with pytest.raises(InvalidImage, match=f"image: is a TIFF file with 5 bands of {name}; complex numbers are no pic"):
        pixels(tiff(array, planarconfig="separate"))


def test_what_is_no_picture_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidImage, match="whose 3 bands have different types, of 5/6 bits"):
        pixels(handmade(4, 4, {258: ("H", [5, 6, 5]), 277: ("H", [3]), 262: ("H", [2])}, bytes(32)))
    with pytest.raises(InvalidImage, match="volume"):
        pixels(handmade(4, 4, {32997: ("I", [3])}, bytes(48)))
    with pytest.raises(InvalidImage, match=r"TIFF, 1 band of uint16\) whose Photometric.* 32844 is not read"):
        pixels(handmade(4, 4, {258: ("H", [16]), 262: ("H", [32844])}, bytes(32)))
    with pytest.raises(InvalidImage, match=r"TIFF, 1 band of uint16\) whose compression .* is not read"):
        pixels(handmade(4, 4, {258: ("H", [16]), 259: ("H", [34676])}, bytes(32)))


def test_a_size_that_is_too_large_is_refused_before_anything_is_decoded() -> None:
    tracemalloc.start()
    for tags in ({}, {258: ("H", [16])}, {258: ("H", [32]), 339: ("H", [3])}):
        with pytest.raises(TooLarge, match="image: has 12000×10000 = 120000000 pixels"):
            identify(handmade(12_000, 10_000, tags, bytes(100)), Limits())
    # Few pixels, but of many bands; and tiles that are larger than the picture.
    with pytest.raises(TooLarge, match="image: its samples take"):
        pixels(handmade(2000, 2000, {258: ("H", [32] * 900), 277: ("H", [900]), 339: ("H", [3] * 900)}, bytes(100)))
    tiles = {258: ("H", [16]), 322: ("I", [60_000]), 323: ("I", [60_000]), 324: ("I", [8]), 325: ("I", [100])}
    with pytest.raises(TooLarge, match="image: its samples take"):
        pixels(handmade(20, 20, tiles, bytes(100)))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_part_that_claims_to_be_larger_than_it_may_be_is_not_decoded() -> None:
    jpeg = encoded(Image.new("L", (4000, 4000)), "JPEG")
    tags = {259: ("H", [7]), 258: ("H", [8, 8, 8, 8]), 277: ("H", [4]), 262: ("H", [1])}
    with pytest.raises(InvalidImage, match="a part of 20×20 says it is larger"):
        pixels(handmade(20, 20, {**tags}, jpeg))


def test_compressed_data_write_no_more_than_a_strip() -> None:
    bomb = bytes(imagecodecs.zlib_encode(bytes(200_000_000), 9))
    tracemalloc.start()

    with pytest.raises(InvalidImage, match="image: is damaged"):
        pixels(handmade(20, 20, {258: ("H", [16]), 259: ("H", [8])}, bomb))

    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_pages_in_a_circle_are_refused() -> None:
    data = bytearray(handmade(4, 4, {}, bytes(16)))
    data[-4:] = data[4:8]

    with pytest.raises(InvalidImage, match="its pages run in a circle"):
        pixels(bytes(data), page=5)


def test_tags_that_overlap_are_not_read() -> None:
    strip = bytes(200_000)
    data = bytearray(handmade(4, 4, {}, strip))
    entry = struct.pack("<HHII", 273, 4, 50_000, 8)
    [start] = struct.unpack_from("<I", data, 4)
    data = data[:start] + struct.pack("<H", 1000) + entry * 1000 + bytes(4)

    with pytest.raises(InvalidImage, match="its tags hold more than the file"):
        pixels(bytes(data))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    "make",
    [
        lambda: tiff(scene(0, 900, np.uint16)),
        lambda: tiff(scene(0, 900, np.float32), compression="zlib"),
        lambda: png16(scene(0, 900, np.uint16)),
        lambda: b"P5 320 240 4095\n" + scene(0, 300, ">u2").tobytes(),
    ],
)
def test_a_truncated_file_of_many_bits_is_refused(make: Callable[[], bytes], share: float) -> None:
    data = make()

    with pytest.raises(InvalidImage, match=r"^image: "):
        pixels(data[: int(share * len(data))])


DAMAGED: dict[str, Callable[[], bytes]] = {
    "planar": lambda: tiff(np.stack([scene(0, 9000, np.uint16)[:40, :50]] * 4), planarconfig="separate"),
    "tiled": lambda: tiff(scene(0, 1, np.float32)[:40, :50], tile=(16, 16), compression="zlib", predictor=True),
    "lzw": lambda: tiff(scene(0, 1, np.float64)[:40, :50], compression="lzw"),
    "big": lambda: tiff(scene(0, 900, np.int16)[:40, :50], bigtiff=True, compression="zstd"),
    "jpeg": lambda: tiff(np.dstack([RGB8, RGB8[:, :, :1]]), planarconfig="contig", compression="jpeg"),
    "geotiff": lambda: geotiff(scene(0, 900, np.int16)[None, :40, :50], np.eye(40, 50) > 0, nodata=5),
    "pages": lambda: pages_of(3000, 4000, dtype=np.uint16),
    "png": lambda: png16(scene(0, 9000, np.uint16)[:40, :50]),
    "pgm": lambda: b"P2 3 2 4095\n1 2 3 4000 5 6\n",
    "ppm": lambda: b"P6 #a\n3 2\n4095\n" + bytes(36),
}


@cache
def undamaged(name: str) -> bytes:
    return DAMAGED[name]()


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", DAMAGED)
def test_random_damage_does_no_more_than_refuse_the_picture(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(undamaged(name))
    # The structure of these TIFF files stands at their beginning or end.
    places = [*range(min(len(data), 400)), *range(max(0, len(data) - 400), len(data))] if seed % 2 else range(len(data))
    for _ in range(rng.integers(1, 6)):
        data[rng.choice(places)] = rng.integers(0, 256)

    try:
        limits = Limits(max_pixels=4_000_000)
        shown = identify(bytes(data), limits).decode(limits)
    except (InvalidImage, TooLarge) as error:
        message = error.message
    else:
        message = f"image: {shown.dtype}"
    assert message.startswith("image: ")


# ---- PNG and PGM of 16 bits


def test_16_bit_colours_of_png_keep_their_low_bytes() -> None:
    array = np.stack([scene(0, 200, np.uint16), scene(0, 100, np.uint16), scene(0, 50, np.uint16)], 2)
    shown = read(png16(array))

    assert shown.window == robust(array)
    np.testing.assert_array_equal(shown.pixels, windowed(array, *robust(array)))


@pytest.mark.parametrize("kind", [b"P5", b"P6", b"P2", b"P3"])
def test_pgm_and_ppm_of_many_bits(kind: bytes) -> None:
    channels = 1 if kind in (b"P5", b"P2") else 3
    array = np.linspace(0, 4095, 20 * 30 * channels).reshape(20, 30, channels).astype(np.uint16)
    samples = array.astype(">u2").tobytes() if kind in (b"P5", b"P6") else " ".join(map(str, array.ravel())).encode()

    shown = read(kind + b"\n# made by code\n30 20\n4095\n" + samples)

    assert shown.window == (0, 4095)
    np.testing.assert_array_equal(shown.pixels, np.broadcast_to(windowed(array, 0, 4095), (20, 30, 3)))


# ---- PIL images and arrays


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_pil_image_of_many_bits_is_shown_as_its_array_is(mode: str) -> None:
    dtype: Any = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    array = scene(100, 700, dtype)

    np.testing.assert_array_equal(identify(Image.fromarray(array), Limits()).decode(Limits()), of_array(array).pixels)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<f4", ">f8", "<i4", "f2", "?", "u1"])
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4, 7])
def test_an_array_is_shown_as_its_tiff_is(dtype: str, channels: int) -> None:
    planes = [scene(0, 1 + 100 * (dtype != "?"), dtype)[::2, ::2] for _ in range(max(1, channels))]
    array = np.stack(planes, 2) if channels else planes[0]
    as_file = array.squeeze()
    if dtype == "?":
        as_file = as_file.astype("u1") * 255
    colours = {"planarconfig": "contig", "photometric": "rgb" if channels == 3 else "minisblack"}

    np.testing.assert_array_equal(of_array(array).pixels, pixels(tiff(as_file, **(colours if channels > 1 else {}))))


@pytest.mark.parametrize("image", [np.zeros((4, 5), np.uint8), Image.new("L", (5, 4))])
def test_an_array_or_a_pil_image_has_one_page(image: Any) -> None:
    with pytest.raises(InvalidRequest, match="page: is 1, and the file has 1"):
        identify(image, Limits(), options=PictureOptions(page=1))


def test_a_file_is_not_read_for_a_request_that_is_over() -> None:
    with pytest.raises(DeadlineExceeded):
        identify(encoded(PICTURE), Limits(), deadline=Deadline(0))
    identified = identify(encoded(PICTURE), Limits(), deadline=Deadline(9))
    with pytest.raises(DeadlineExceeded):
        identified.read(Limits(), Deadline(0))
