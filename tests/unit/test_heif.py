"""HEIC and AVIF: upright as their container says, their colours, their pages."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import AvifImagePlugin, Image, features

from deployments.errors import InvalidImage, InvalidRequest
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import extra, heif
from harness.icc_profiles import DISPLAY_P3, linear_srgb, rgb_profile
from harness.images import encoded, picture

# Saving as HEIC is pillow-heif's; reading goes without this.
pillow_heif.register_heif_opener()

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")

KINDS = ["HEIF", "AVIF"]
PICTURE = picture(64, 48)


def read(data: bytes, **options: Any) -> Any:
    chosen = PictureOptions(**options)
    assert heif.matches(data[:65536])
    pixels = heif.read(io.BytesIO(data), chosen).samples
    assert heif.size(io.BytesIO(data), chosen) == pixels.shape[1::-1]
    assert not heif.is_deep(io.BytesIO(data), chosen)
    return pixels


def flag() -> Any:
    """Red above left, green above right, blue below left, black below right."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return pixels


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_has_its_colours(kind: str) -> None:
    pixels = read(encoded(PICTURE, kind, quality=95))

    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - np.asarray(PICTURE)).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_rotation_and_mirroring_are_applied_once(kind: str, orientation: int) -> None:
    upright = flag()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    # Both encoders write this orientation as `irot` and `imir`; pillow-heif leaves it in the EXIF as well.
    exif = Image.Exif()
    exif[0x0112] = orientation

    pixels = read(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes(), quality=95))

    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 12


@pytest.mark.parametrize("kind", KINDS)
def test_transparent_pixels_show_the_background(kind: str) -> None:
    image = Image.new("RGBA", (64, 64), (200, 10, 10, 255))
    image.paste((200, 10, 10, 0), (0, 0, 32, 64))

    pixels = read(encoded(image, kind, quality=95), background=(0, 0, 255)).astype(int)

    assert np.abs(pixels[:, :24] - (0, 0, 255)).max() <= 6
    assert np.abs(pixels[:, 40:] - (200, 10, 10)).max() <= 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_is_brought_to_srgb(kind: str) -> None:
    image = Image.new("RGB", (64, 64), (200, 120, 60))
    profile = rgb_profile(DISPLAY_P3, 2.2)

    pixels = read(encoded(image, kind, quality=100, icc_profile=profile, subsampling="4:4:4"))

    assert np.abs(pixels[30, 30] - linear_srgb(np.array([200, 120, 60]), DISPLAY_P3, 2.2)).max() <= 4


def test_ten_bits_are_read_as_what_is_seen() -> None:
    deep = np.asarray(PICTURE).astype(np.uint16) << 8
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", PICTURE.size, deep.tobytes()).save(buffer, quality=95)
    assert pillow_heif.open_heif(buffer).info["bit_depth"] == 10

    assert np.abs(read(buffer.getvalue()).astype(int) - np.asarray(PICTURE)).mean() < 12


def test_pages_of_a_collection_begin_with_the_primary_picture() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    first, second, third = (Image.new("RGB", (64, 48), colour) for colour in colours)
    file = encoded(first, "HEIF", save_all=True, append_images=[second, third], primary_index=1, quality=95)

    shown = [read(file, page=page)[24, 32].astype(int) for page in range(3)]

    for pixel, colour in zip(shown, [colours[1], colours[0], colours[2]], strict=True):
        assert np.abs(pixel - colour).max() <= 6
    with pytest.raises(InvalidRequest, match="page: is 3, and the file has 3, counted from 0"):
        read(file, page=3)


def test_a_page_of_an_avif_is_a_frame() -> None:
    red, blue = Image.new("RGB", (64, 48), (250, 0, 0)), Image.new("RGB", (64, 48), (0, 0, 250))
    file = encoded(red, "AVIF", save_all=True, append_images=[blue], quality=95)

    assert np.abs(read(file)[24, 32].astype(int) - (250, 0, 0)).max() <= 6
    assert np.abs(read(file, page=1)[24, 32].astype(int) - (0, 0, 250)).max() <= 6
    with pytest.raises(InvalidRequest, match="page: is 2, and the file has 2, counted from 0"):
        read(file, page=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    file = encoded(PICTURE, kind, quality=95)

    with pytest.raises(InvalidImage, match="damaged or truncated"):
        heif.read(io.BytesIO(file[: int(share * len(file))]), PictureOptions())


def test_an_avif_is_decoded_by_as_many_threads_as_there_are_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(PICTURE, "AVIF", quality=95)
    threads: list[int] = []
    plugin: Any = AvifImagePlugin
    decoder = plugin._avif.AvifDecoder

    def noted(data: bytes, codec: str, max_threads: int) -> Any:
        threads.append(max_threads)
        return decoder(data, codec, max_threads)

    monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", 0)
    monkeypatch.setattr(AvifImagePlugin, "_avif", SimpleNamespace(AvifDecoder=noted))
    monkeypatch.setattr(heif, "usable_cores", lambda: 3)

    heif.read(io.BytesIO(file), PictureOptions())

    assert set(threads) == {3}


def test_an_avif_that_calls_itself_heif_first_is_an_avif() -> None:
    file = encoded(PICTURE, "AVIF", quality=95)
    assert file[8:12] == b"avif"

    renamed = file[:8] + b"mif1" + file[12:]

    assert np.abs(read(renamed).astype(int) - np.asarray(PICTURE)).mean() < 12


def test_without_its_library_the_refusal_names_kind_and_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(extra, "import_module", missing)

    with pytest.raises(InvalidImage, match=r"is a HEIC picture.* pillow_heif is missing.*\[formats\]"):
        heif.size(io.BytesIO(encoded(PICTURE, "HEIF")), PictureOptions())


@pytest.mark.parametrize("data", [b"", b"\0\0\0\x18ftyp", b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", encoded(PICTURE)])
def test_other_files_are_not_taken(data: bytes) -> None:
    assert not heif.matches(data)
