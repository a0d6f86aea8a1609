"""What clients call an image: every format and mode, and everything that is not one."""

import contextlib
import io
import struct
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, features

from deployments.errors import InvalidImage, TooLarge
from deployments.messages.arrays import RgbArray
from deployments.parsing.images import identify
from deployments.settings import Limits
from harness.images import encoded, picture

# Pillow warns of what the service then refuses by itself; outside of tests a warning is not an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

LIMITS = Limits()
PICTURE = picture(40, 30)


class Decoded(NamedTuple):
    """What becomes of an image that a model has to see."""

    image_id: str
    pixels: RgbArray


def decode(image: Any, limits: Limits) -> Decoded:
    """What becomes of an image; the same if its bytes come as a file, as uploads do."""
    outcomes = [outcome(image, limits)]
    if isinstance(image, bytes):
        with tempfile.SpooledTemporaryFile(max_size=1000) as file:
            file.write(image)
            outcomes.append(outcome(file, limits))
        assert len({str(one) if isinstance(one, Exception) else one.image_id for one in outcomes}) == 1
    if isinstance(outcomes[-1], Exception):
        raise outcomes[-1]
    return outcomes[-1]


def outcome(image: Any, limits: Limits) -> Decoded | InvalidImage | TooLarge:
    try:
        identified = identify(image, limits)
        return Decoded(identified.image_id, identified.decode(limits))
    except (InvalidImage, TooLarge) as error:
        return error


def rgb(image: Image.Image) -> Any:
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def palette_with_transparency() -> Image.Image:
    image = PICTURE.quantize(16)
    image.info["transparency"] = 3
    return image


# ---- formats and modes


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (PICTURE, "PNG", {}),
        (PICTURE, "BMP", {}),
        (PICTURE, "TIFF", {}),
        (PICTURE, "TIFF", {"compression": "tiff_lzw"}),
        (PICTURE, "WEBP", {"lossless": True}),
        (PICTURE, "PPM", {}),
        (PICTURE, "TGA", {}),
        (PICTURE, "ICO", {"sizes": [(40, 30)]}),
        (PICTURE, "JPEG2000", {}),
        (PICTURE, "QOI", {}),
        (PICTURE.convert("L"), "PNG", {}),
        (PICTURE.convert("1"), "PNG", {}),
        (PICTURE.convert("1"), "TIFF", {}),
        (PICTURE.convert("LA"), "PNG", {}),
        (PICTURE.convert("RGBA"), "PNG", {}),
        (PICTURE.quantize(16), "PNG", {}),
        (PICTURE.quantize(16), "GIF", {}),
        (PICTURE.quantize(200), "BMP", {}),
        (palette_with_transparency(), "PNG", {}),
    ],
    ids=lambda value: f"{value.mode}-{value.format}" if isinstance(value, Image.Image) else str(value),
)
def test_a_lossless_file_gives_its_pixels(image: Image.Image, kind: str, options: dict[str, Any]) -> None:
    pixels = decode(encoded(image, kind, **options), LIMITS).pixels

    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, rgb(image))


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("RGB", "WEBP")]
)
def test_a_lossy_file_gives_nearly_its_pixels(mode: str, kind: str) -> None:
    image = PICTURE.convert(mode)

    pixels = decode(encoded(image, kind, quality=95), LIMITS).pixels

    assert np.abs(pixels.astype(int) - rgb(image)).mean() < 12


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read() -> None:
    pixels = decode(encoded(PICTURE, "AVIF", quality=95), LIMITS).pixels

    assert np.abs(pixels.astype(int) - rgb(PICTURE)).mean() < 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several_counts(kind: str) -> None:
    red, blue = Image.new("RGB", (12, 9), (255, 0, 0)), Image.new("RGB", (12, 9), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}

    pixels = decode(encoded(red, kind, save_all=True, append_images=[blue], **options), LIMITS).pixels

    assert pixels.shape == (9, 12, 3)
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_that_uses_its_range_is_shown_as_it_is(kind: str) -> None:
    grey = (np.arange(24, dtype=np.uint16).reshape(4, 6) * 2700) + 99

    pixels = decode(encoded(Image.fromarray(grey), kind), LIMITS).pixels

    np.testing.assert_array_equal(pixels, np.repeat(np.rint(grey / 257).astype(np.uint8)[:, :, None], 3, axis=2))


def test_transparent_pixels_show_what_is_behind_them() -> None:
    image = Image.new("RGBA", (3, 2), (10, 200, 30, 0))

    assert (decode(encoded(image), LIMITS).pixels == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    # Stored as orientation o says, so that the viewer sees red above left, green above right, blue below left.
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored: dict[int, Any] = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(np.ascontiguousarray(stored[orientation])), kind, exif=exif)

    pixels = decode(file, LIMITS).pixels

    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 12


def test_a_pil_image_is_decoded_as_its_file_is() -> None:
    file = encoded(PICTURE)

    np.testing.assert_array_equal(decode(Image.open(io.BytesIO(file)), LIMITS).pixels, decode(file, LIMITS).pixels)


@pytest.mark.parametrize("container", [bytes, bytearray, memoryview])
def test_any_bytes_are_a_file(container: Callable[[bytes], Any]) -> None:
    assert decode(container(encoded(PICTURE)), LIMITS).pixels.shape == (30, 40, 3)


@pytest.mark.parametrize(
    "array", [rgb(PICTURE), rgb(PICTURE)[::-1, ::2], np.asfortranarray(rgb(PICTURE))], ids=["plain", "view", "fortran"]
)
def test_an_array_is_taken_as_it_is(array: Any) -> None:
    decoded = decode(array, LIMITS)

    assert decoded.pixels.flags.c_contiguous
    np.testing.assert_array_equal(decoded.pixels, array)


# ---- what is not an image


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 0), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((4, 4), "U1"),
        np.zeros((4, 4), object),
        np.zeros((4, 4), "M8[s]"),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}",
)
def test_an_array_that_is_no_picture_is_refused(array: Any) -> None:
    with pytest.raises(InvalidImage, match="image: an array must be H×W or H×W×C, of numbers"):
        decode(array, LIMITS)


def test_an_array_whose_channels_come_first_is_refused() -> None:
    with pytest.raises(InvalidImage, match=r"image: an array must be H×W×C, is 3×48×640; .* transpose it"):
        decode(np.zeros((3, 48, 640), np.float32), LIMITS)


def test_an_array_of_complex_numbers_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidImage, match="image: is an array of 3 bands of complex64; only real numbers"):
        decode(np.zeros((4, 4, 3), np.complex64), LIMITS)


@pytest.mark.parametrize("value", ["picture.png", None, 5, [[1, 2, 3]]])
def test_what_is_neither_bytes_nor_pil_nor_array_is_refused(value: Any) -> None:
    with pytest.raises(InvalidImage, match="image: must be bytes, a PIL image or a numpy array"):
        decode(value, LIMITS)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", encoded(PICTURE))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"\0" * 1000,
        b"<html><body>404</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        zipped(),
    ],
    ids=["text", "zeros", "html", "svg", "pdf", "eps", "png-signature", "jpeg-signature", "gif-signature", "zip"],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"^image: is "):
        decode(data, LIMITS)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(InvalidImage, match="image: the file is empty"):
        decode(b"", LIMITS)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("PPM", {}),
    ],
    ids=str,
)
def test_a_truncated_file_is_refused(kind: str, options: dict[str, Any], share: float) -> None:
    file = encoded(picture(200, 150), kind, **options)

    with pytest.raises(InvalidImage, match=r"^image: is "):
        decode(file[: int(share * len(file))], LIMITS)


# ---- limits


def png_header(width: int, height: int) -> bytes:
    """A PNG file that ends where its pixels would begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    data = png_header(12_000, 10_000) + struct.pack(">I", 1) + b"IDAT" + b"\0" * 5

    with pytest.raises(TooLarge, match="image: has 12000×10000 = 120000000 pixels, more than the 64000000 accepted"):
        decode(data, LIMITS)


def test_a_header_of_any_size_is_refused() -> None:
    with pytest.raises(TooLarge, match="image: has more than the 64000000 pixels that are accepted"):
        decode(png_header(2**31 - 1, 2**31 - 1) + struct.pack(">I", 1) + b"IDAT" + b"\0" * 5, LIMITS)


def test_a_large_image_inside_an_icon_is_not_decoded() -> None:
    inside = encoded(Image.new("1", (16_000, 16_000)))
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inside), 22) + inside

    with pytest.raises(TooLarge, match="more than the 64000000 pixels"):
        decode(icon, LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_a_decompression_bomb_is_not_decoded(kind: str) -> None:
    options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
    bomb = encoded(Image.new("1", (16_000, 8_000)), kind, **options)
    tracemalloc.start()

    with pytest.raises(TooLarge, match="128000000 pixels"):
        decode(bomb, LIMITS)

    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("image", [rgb(PICTURE), PICTURE, encoded(PICTURE)], ids=["array", "pil", "file"])
def test_the_pixel_limit_is_exact(image: Any) -> None:
    assert decode(image, Limits(max_pixels=1200)).pixels.shape == (30, 40, 3)
    with pytest.raises(TooLarge, match="image: has 40×30 = 1200 pixels, more than the 1199 accepted"):
        decode(image, Limits(max_pixels=1199))


def test_the_byte_limit_is_exact() -> None:
    file = encoded(PICTURE)

    assert decode(file, Limits(max_image_bytes=len(file))).pixels.shape == (30, 40, 3)
    with pytest.raises(TooLarge, match=f"image: has {len(file)} bytes, more than the {len(file) - 1} that"):
        decode(file, Limits(max_image_bytes=len(file) - 1))


# ---- image_id


def test_the_same_bytes_have_the_same_id() -> None:
    assert decode(encoded(PICTURE), LIMITS).image_id == decode(encoded(PICTURE), LIMITS).image_id


def test_other_bytes_have_another_id() -> None:
    ids = {
        decode(image, LIMITS).image_id
        for image in (encoded(PICTURE), encoded(PICTURE, "BMP"), encoded(picture(40, 30, seed=1)), PICTURE)
    }

    assert len(ids) == 4


@pytest.mark.parametrize("image", [PICTURE, PICTURE.convert("RGBA"), rgb(PICTURE), np.asfortranarray(rgb(PICTURE))])
def test_arrays_and_pil_images_of_the_same_pixels_have_the_same_id(image: Any) -> None:
    assert decode(image, LIMITS).image_id == decode(rgb(PICTURE), LIMITS).image_id


def test_arrays_of_the_same_bytes_but_another_shape_differ() -> None:
    array = rgb(PICTURE)

    assert decode(array, LIMITS).image_id != decode(array.reshape(40, 30, 3), LIMITS).image_id


def test_pil_images_that_differ_only_in_their_palette_differ() -> None:
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    red, blue = Image.fromarray(indices).convert("P"), Image.fromarray(indices).convert("P")
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)

    assert decode(red, LIMITS).image_id != decode(blue, LIMITS).image_id


def test_a_rotated_pil_image_has_the_id_of_its_upright_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.open(io.BytesIO(encoded(Image.fromarray(np.rot90(rgb(PICTURE), 1).copy()), exif=exif)))

    assert decode(sideways, LIMITS).image_id == decode(PICTURE, LIMITS).image_id


def test_an_id_is_a_sha_256_in_hex() -> None:
    assert len(bytes.fromhex(decode(PICTURE, LIMITS).image_id)) == 32


# ---- damage


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_random_damage_never_does_more_than_refuse_the_image(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(PICTURE, kind))
    # Half of the damage goes where it does most harm: into the headers.
    reach = len(data) if seed % 2 else min(len(data), 120)
    for position in rng.integers(0, reach, size=rng.integers(1, 8)):
        data[position] = rng.integers(0, 256)

    # Any other error would fail the test.
    with contextlib.suppress(InvalidImage, TooLarge):
        assert decode(bytes(data), Limits(max_pixels=4_000_000)).pixels.ndim == 3


# ---- what a remembered image costs


def test_a_file_is_named_and_measured_without_being_decoded() -> None:
    file = encoded(Image.new("RGB", (4000, 3000), (10, 200, 30)))
    tracemalloc.start()

    identified = identify(file, LIMITS)

    # Its pixels take 36 MB.
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert identified.decode(LIMITS).shape == (3000, 4000, 3)
