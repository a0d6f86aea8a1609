"""Everyday pictures: read as browsers show them, tolerant where browsers are, and refused by the name of their kind."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from deployments.errors import InvalidImage, InvalidRequest
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import camera_raw, deep_jpeg, dicom, heif, jxl, kinds, pillow_reader, rarer_pillow_reader
from harness.icc_profiles import ADOBE_RGB, DISPLAY_P3, SRGB, cmyk_profile, grey_profile, linear_srgb, rgb_profile
from harness.images import encoded, picture

# Pillow warns of metadata that are then ignored; outside of tests a warning is not an error.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PICTURE = picture(40, 30)
RGB = np.asarray(PICTURE)
DEFAULT = PictureOptions()


def read(data: bytes | bytearray, **options: Any) -> Any:
    """The pixels; the size that the header tells must be theirs."""
    chosen = PictureOptions(**options)
    pixels = pillow_reader.read(io.BytesIO(data), chosen).samples
    assert pillow_reader.size(io.BytesIO(data), chosen) == pixels.shape[1::-1]
    return pixels


def refused(data: bytes, **options: Any) -> str:
    with pytest.raises((InvalidImage, InvalidRequest)) as caught:
        pillow_reader.read(io.BytesIO(data), PictureOptions(**options))
    return str(caught.value)


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def with_chunk(png: bytes, *added: bytes, before: bytes = b"IDAT") -> bytes:
    """The PNG file with chunks in front of the first one of that name."""
    at = png.index(before) - 4
    return png[:at] + b"".join(added) + png[at:]


# ---- metadata that cannot be read


@pytest.mark.parametrize(
    "added",
    [
        chunk(b"eXIf", b"no TIFF structure at all"),
        chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2**21)),
        chunk(b"iTXt", b"Comment\0\x01\0\0\0" + zlib.compress(b"a" * 2**21)),
        chunk(b"zTXt", b"Comment\0\x07" + zlib.compress(b"a")),
        chunk(b"tEXt", b"Comment\0hello", checksum=1),
        chunk(b"pHYs", b"\0\0\0\1\0\0\0\1\0", checksum=1),
        chunk(b"pHYs", b"\0"),
        chunk(b"gAMA", b"\0"),
        chunk(b"cHRM", b"\0"),
        chunk(b"sRGB", b""),
        chunk(b"tRNS", b"\0"),
        chunk(b"acTL", b"\0"),
        chunk(b"acTL", struct.pack(">II", 0, 0)),
        chunk(b"fcTL", bytes(26), checksum=1),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(b"no profile")),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(9 * 2**20))),
        chunk(b"iCCP", b"name\0\0no zlib stream"),
        chunk(b"prVt", b"private", checksum=1),
    ],
    ids=lambda added: f"{added[4:8].decode()}-{zlib.crc32(added)}",
)
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_png_is_read_as_if_its_broken_metadata_were_absent(added: bytes, before: bytes) -> None:
    np.testing.assert_array_equal(read(with_chunk(encoded(PICTURE), added, before=before)), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0no TIFF structure", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_is_ignored(kind: str, exif: bytes) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}

    np.testing.assert_array_equal(
        read(encoded(PICTURE, kind, exif=exif, **options)), read(encoded(PICTURE, kind, **options))
    )


@pytest.mark.parametrize("profile", [b"no profile", rgb_profile(SRGB, 2.2)[:300], cmyk_profile(50)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_profile_that_is_broken_or_of_other_colours_is_ignored(kind: str, profile: bytes) -> None:
    np.testing.assert_array_equal(read(encoded(PICTURE, kind, icc_profile=profile)), read(encoded(PICTURE, kind)))


def test_a_wrong_checksum_of_a_critical_chunk_is_refused() -> None:
    file = bytearray(encoded(PICTURE.quantize(16)))
    file[file.index(b"PLTE") + 5] ^= 1

    assert "damaged" in refused(bytes(file))


def test_a_png_without_its_last_chunk_is_read() -> None:
    file = encoded(PICTURE)

    np.testing.assert_array_equal(read(file[: file.index(b"IEND") - 4]), RGB)


def test_a_png_of_countless_chunks_is_refused_soon() -> None:
    assert "chunks" in refused(with_chunk(encoded(PICTURE), chunk(b"teSt", b"") * 200_001))


# ---- JPEG files that end too early

BARE = {
    "baseline": lambda: encoded(picture(200, 150), "JPEG"),
    "progressive": lambda: encoded(picture(200, 150), "JPEG", progressive=True),
    "grey": lambda: encoded(picture(200, 150).convert("L"), "JPEG"),
    "cmyk": lambda: encoded(picture(200, 150).convert("CMYK"), "JPEG"),
    "restarts": lambda: encoded(picture(200, 150), "JPEG", restart_marker_rows=1),
    "subsampled": lambda: encoded(picture(201, 149), "JPEG", subsampling="4:2:0"),
    "plain": lambda: encoded(Image.new("RGB", (200, 150), (128, 128, 128)), "JPEG"),
}


@pytest.mark.parametrize("file", BARE.values(), ids=BARE)
def test_a_jpeg_without_its_end_marker_is_read(file: Callable[[], bytes]) -> None:
    whole = file()
    assert whole.endswith(b"\xff\xd9")

    np.testing.assert_array_equal(read(whole[:-2]), read(whole))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.97, 0.99])
@pytest.mark.parametrize("kind", [kind for kind in BARE if kind != "plain"])
def test_a_jpeg_whose_rows_are_not_all_there_is_refused(kind: str, share: float) -> None:
    whole = BARE[kind]()

    assert "truncated" in refused(whole[: int(share * len(whole))])


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts"])
def test_a_jpeg_that_lacks_a_few_bytes_of_its_last_row_is_refused(kind: str) -> None:
    assert "truncated" in refused(BARE[kind]()[:-10])


def test_a_progressive_jpeg_that_lacks_its_last_scans_is_refused() -> None:
    whole = BARE["progressive"]()
    scans = [at for at in range(len(whole) - 1) if whole[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5

    for scan in scans[1:]:
        # In front of a scan stands the table for it.
        start = whole.rindex(b"\xff\xc4", 0, scan)
        assert "truncated" in refused(whole[:start])


def test_a_progressive_jpeg_of_countless_scans_is_refused() -> None:
    file = encoded(picture(64, 48), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    scans = file[:last] + 600 * file[last:-2] + file[-2:]
    with pytest.raises(InvalidImage, match="image: is a JPEG file of more than 500 scans"):
        pillow_reader.read(io.BytesIO(scans), PictureOptions())


def test_lossless_jpeg_of_ycbcr_has_its_colours() -> None:
    ycbcr = np.ascontiguousarray(np.asarray(PICTURE.convert("YCbCr")))
    file = imagecodecs.jpeg8_encode(ycbcr, lossless=True, colorspace="RGB", outcolorspace="RGB")
    # The last byte of Adobe's segment says what the components are: 0 for RGB, 1 for YCbCr.
    at = file.index(b"Adobe") + 11
    assert file[at] == 0

    pixels = read(file[:at] + b"\1" + file[at + 1 :])

    np.testing.assert_array_equal(
        pixels, np.asarray(Image.frombytes("YCbCr", (40, 30), ycbcr.tobytes()).convert("RGB"))
    )


def test_lossless_jpeg_of_rgb_keeps_its_colours() -> None:
    file = imagecodecs.jpeg8_encode(np.ascontiguousarray(RGB), lossless=True, colorspace="RGB", outcolorspace="RGB")

    np.testing.assert_array_equal(read(file), RGB)


# ---- orientation


def stored(upright: Any, orientation: int) -> Image.Image:
    """The picture as a file of that orientation holds it (EXIF 2.32, 4.6.5.1)."""
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    return Image.fromarray(np.ascontiguousarray(turned))


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="r"><r:Description tiff:Orientation="{}"/></r:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(kind: str, orientation: int, order: str) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + mark + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}

    pixels = read(encoded(stored(RGB, orientation), kind, exif=exif, **options))

    assert pixels.shape == RGB.shape
    assert np.abs(pixels.astype(int) - RGB).mean() < (12 if kind == "JPEG" else 0.01)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_orientation_in_xmp_alone_is_not_applied(kind: str) -> None:
    xmp = XMP.format(3)
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp)
        file = encoded(PICTURE, "PNG", pnginfo=text)
    else:
        file = encoded(PICTURE, kind, xmp=xmp.encode())
    assert b"Orientation" in file

    np.testing.assert_array_equal(read(file), read(encoded(PICTURE, kind)))


def test_an_orientation_that_does_not_exist_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9

    np.testing.assert_array_equal(read(encoded(PICTURE, exif=exif)), RGB)


# ---- transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_show_the_background(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (200, 10, 10, 255))
    image.paste((200, 10, 10, 0), (0, 0, 2, 2))
    converted = image.convert("P") if mode == "P" else image.convert(mode)
    if mode == "P":
        indices = np.array([[0, 0, 1, 1]] * 2, np.uint8)
        converted = Image.fromarray(indices).convert("P")
        converted.putpalette([200, 10, 10] * 256)
        converted.info["transparency"] = 0
    file = encoded(converted)

    assert (read(file)[:, :2] == 255).all()
    assert (read(file, background=(1, 2, 3))[:, :2] == (1, 2, 3)).all()
    assert (read(file)[:, 2:] == np.asarray(image.convert("LA" if mode == "LA" else "RGB").convert("RGB"))[0, 3]).all()


def test_half_transparent_pixels_are_mixed_with_the_background() -> None:
    assert (read(encoded(Image.new("RGBA", (2, 2), (255, 0, 100, 51)))) == (255, 204, 224)).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_value_of_a_grey_png_is_scaled_with_its_bits(bits: int) -> None:
    highest = 2**bits - 1
    row = bytes([0, *([0xFF] * (8 * bits // 8))])
    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    transparent = chunk(b"tRNS", struct.pack(">H", highest))
    file = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + transparent
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )

    assert (read(file, background=(1, 2, 3)) == (1, 2, 3)).all()


def test_the_transparent_colour_of_an_rgb_png_shows_the_background() -> None:
    file = encoded(PICTURE, transparency=tuple(int(value) for value in RGB[5, 7]))

    pixels = read(file)
    hidden = (RGB[5, 7] == RGB).all(axis=2)

    assert (pixels[hidden] == 255).all()
    np.testing.assert_array_equal(pixels[~hidden], RGB[~hidden])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_opaque_pictures_have_the_same_bytes_with_alpha_and_without(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}

    np.testing.assert_array_equal(read(encoded(PICTURE.convert("RGBA"), kind, **options)), RGB)
    assert read(encoded(PICTURE.convert("RGBA"), kind, **options)).flags.c_contiguous


# ---- colour profiles


@pytest.mark.parametrize(
    ("colorants", "gamma"), [(DISPLAY_P3, 2.2), (ADOBE_RGB, 2.19921875), (SRGB, 1.8), (DISPLAY_P3, 1.0)]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_profile_is_brought_to_srgb(kind: str, colorants: Any, gamma: float) -> None:
    for colour in [(200, 120, 60), (30, 90, 160), (128, 128, 128), (250, 250, 250)]:
        options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        file = encoded(Image.new("RGB", (16, 16), colour), kind, icc_profile=rgb_profile(colorants, gamma), **options)
        without = read(encoded(Image.new("RGB", (16, 16), colour), kind, **options))[0, 0]

        expected = linear_srgb(without, colorants, gamma)

        assert np.abs(read(file)[0, 0] - expected).max() <= 1.5, (colour, read(file)[0, 0], expected)


def test_srgb_keeps_its_bytes() -> None:
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = encoded(PICTURE, icc_profile=data)
    assert b"iCCP" in file

    np.testing.assert_array_equal(read(file), RGB)


def test_a_grey_profile_is_brought_to_srgb() -> None:
    levels = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None], 4, axis=0)
    file = encoded(Image.fromarray(levels), icc_profile=grey_profile(1.0))

    expected = linear_srgb(np.repeat(levels[:, :, None], 3, axis=2), SRGB, 1.0)

    assert np.abs(read(file) - expected).max() <= 1.5


def test_a_cmyk_jpeg_follows_its_profile() -> None:
    # No ink is white; one full ink has L* 50, which is the sRGB grey 119.
    for inks, grey in [((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((0, 0, 0, 255), 119)]:
        file = encoded(Image.new("CMYK", (16, 16), inks), "JPEG", quality=100, icc_profile=cmyk_profile(50))

        assert np.abs(read(file).astype(int) - grey).max() <= 3, (inks, read(file)[0, 0])


def test_colours_are_converted_before_transparent_pixels_show_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (200, 120, 60, 255))
    image.putpixel((0, 0), (200, 120, 60, 0))
    pixels = read(encoded(image, icc_profile=rgb_profile(DISPLAY_P3, 2.2)), background=(0, 200, 0))

    assert tuple(pixels[0, 0]) == (0, 200, 0)
    assert np.abs(pixels[0, 1] - linear_srgb(np.array([200, 120, 60]), DISPLAY_P3, 2.2)).max() <= 1.5


# ---- pages

FRAMES = [Image.new("RGB", (12, 9), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_a_page_is_a_frame_of_the_animation(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **options)

    for page, frame in enumerate(FRAMES):
        assert (read(file, page=page) == np.asarray(frame)).all()
    assert refused(file, page=3) == "page: is 3, and the file has 3, counted from 0"


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_frame_is_composed_with_those_before_it(kind: str) -> None:
    second = FRAMES[0].copy()
    second.paste((0, 0, 255), (3, 3, 6, 6))

    file = encoded(FRAMES[0], kind, save_all=True, append_images=[second])

    np.testing.assert_array_equal(read(file, page=1), np.asarray(second))


def test_an_apng_whose_default_image_is_no_frame_shows_the_animation() -> None:
    file = encoded(FRAMES[2], save_all=True, default_image=True, append_images=FRAMES[:2])

    assert (read(file) == (255, 0, 0)).all()
    assert (read(file, page=1) == (0, 255, 0)).all()
    assert refused(file, page=2) == "page: is 2, and the file has 2, counted from 0"


def test_a_still_picture_has_one_page() -> None:
    assert refused(encoded(PICTURE), page=1) == "page: is 1, and the file has 1, counted from 0"


# ---- rarer kinds that Pillow reads


@pytest.mark.parametrize("kind", ["JPEG2000", "TGA", "PCX", "SGI", "ICO", "PPM", "QOI", "DDS"])
def test_rarer_formats_are_read(kind: str) -> None:
    options = {"sizes": [(40, 30)]} if kind == "ICO" else {}
    file = encoded(PICTURE, kind, **options)

    assert not pillow_reader.matches(file[:65536])
    assert rarer_pillow_reader.matches(file[:65536])
    np.testing.assert_array_equal(rarer_pillow_reader.read(io.BytesIO(file), DEFAULT).samples, RGB)


def test_16_bit_jpeg_2000_keeps_its_samples() -> None:
    grey = (np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50) + 7
    file = encoded(Image.fromarray(grey), "JPEG2000")

    raster = rarer_pillow_reader.read(io.BytesIO(file), DEFAULT)

    np.testing.assert_array_equal(raster.samples[:, :, 0], grey)
    assert rarer_pillow_reader.is_deep(io.BytesIO(file), DEFAULT)


# ---- refusals by name


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, encoded(PICTURE))
    return buffer.getvalue()


def saved_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, RGB)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"hello, this is text", "text"),
        ("Zürich, çà et là".encode(), "text"),
        (b"<html><body>404</body></html>", "an HTML page"),
        (b"<!DOCTYPE html>\n<html lang=en>", "an HTML page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', "an SVG drawing"),
        (b'<?xml version="1.0"?>\n<!-- by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
        (b'{"detail": "Not Found"}', "a JSON document"),
        (b"data:image/png;base64,iVBORw0KGgo", "a data URL"),
        (b"iVBORw0KGgoAAAANSUhEUgAA", "base64 text"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "an EPS file"),
        (saved_array(), "a NumPy array"),
        (bytes(344) + b"n+1\0", "a NIfTI volume"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        (zipped("picture.png"), "a zip archive"),
        (zipped("arr_0.npy"), "a NumPy archive"),
        (b"\x1f\x8b\x08" + bytes(99), "a gzip file"),
        (b"\0\0\0\x18ftypisom" + bytes(99), "an MP4 video"),
        (b"\0\0\0\x14ftypqt  " + bytes(99), "a QuickTime video"),
        (b"\x1aE\xdf\xa3" + bytes(99), "a WebM or Matroska video"),
        (b"RIFF\0\0\0\0AVI LIST", "an AVI video"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "a HEIC picture"),
        (b"\0\0\0\x18ftypavif" + bytes(99), "an AVIF picture"),
        (b"8BPS\0\x02" + bytes(99), "a Photoshop big document (PSB)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_refused_by_its_name(data: bytes, name: str) -> None:
    message = str(kinds.refusal(data))

    assert message.startswith(f"image: is {name}")
    assert "; send it as `video`" in message or not name.endswith("video")
    assert not pillow_reader.matches(data)
    assert not rarer_pillow_reader.matches(data)


def test_what_nobody_knows_is_refused_with_its_first_bytes() -> None:
    assert str(kinds.refusal(b"\0\1\2\3\4\5\6\7\x08\x09")) == (
        "image: is of a kind that is not known; its first bytes are 00 01 02 03 04 05 06 07"
    )


@pytest.mark.parametrize(
    "reader",
    [pillow_reader, rarer_pillow_reader, heif, jxl, dicom, camera_raw, deep_jpeg],
    ids=lambda one: one.__name__,
)
def test_no_head_is_too_short_to_be_looked_at(reader: Any) -> None:
    files = [encoded(PICTURE, kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "JPEG2000", "PCX", "AVIF", "DDS")]
    files += [bytes(imagecodecs.jpegxl_encode(RGB)), bytes(imagecodecs.jpegls_encode(RGB)), bytes(300)]
    for file in files:
        for length in range(300):
            assert reader.matches(file[:length]) in (True, False)
            assert str(kinds.refusal(file[:length])).startswith("image: is ")


@pytest.mark.parametrize(
    ("data", "name"), [(b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF89a", "GIF")]
)
def test_a_signature_alone_is_refused_by_its_name(data: bytes, name: str) -> None:
    assert refused(data).startswith(f"image: is a {name} file that is damaged or truncated")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_pixels_are_refused(kind: str, share: float) -> None:
    file = encoded(picture(200, 150), kind)

    assert "damaged or truncated" in refused(file[: int(share * len(file))])
