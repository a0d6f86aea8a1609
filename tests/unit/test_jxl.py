"""JPEG XL: its samples, and its size from the header alone."""

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest

from deployments.errors import InvalidImage, InvalidRequest
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import jxl
from harness.images import picture

RGB = np.asarray(picture(40, 30))


def read(data: bytes | bytearray, **options: Any) -> Any:
    chosen = PictureOptions(**options)
    assert jxl.matches(bytes(data))
    samples = jxl.read(io.BytesIO(data), chosen).samples
    assert jxl.size(io.BytesIO(data), chosen) == samples.shape[1::-1]
    return samples


@pytest.mark.parametrize("container", [False, True])
def test_a_lossless_file_gives_its_pixels(container: bool) -> None:
    file = imagecodecs.jpegxl_encode(RGB, lossless=True, usecontainer=container)

    np.testing.assert_array_equal(read(file), RGB)
    assert not jxl.is_deep(io.BytesIO(file), PictureOptions())


def test_a_lossy_file_gives_nearly_its_pixels() -> None:
    assert np.abs(read(imagecodecs.jpegxl_encode(RGB, distance=1.0)).astype(int) - RGB).mean() < 12


def test_grey_becomes_rgb() -> None:
    grey = np.ascontiguousarray(RGB[:, :, 0])

    np.testing.assert_array_equal(
        read(imagecodecs.jpegxl_encode(grey, lossless=True)), np.repeat(grey[:, :, None], 3, 2)
    )


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_more_bits_are_kept(dtype: Any) -> None:
    deep = (RGB.astype(dtype) * 250) if dtype is np.uint16 else RGB.astype(dtype) / 255
    file = imagecodecs.jpegxl_encode(np.ascontiguousarray(deep), lossless=True)

    np.testing.assert_array_equal(read(file), deep)
    assert jxl.is_deep(io.BytesIO(file), PictureOptions())


def test_transparent_pixels_show_the_background() -> None:
    alpha = np.full((30, 40), 255, np.uint8)
    alpha[:, :20] = 0
    file = imagecodecs.jpegxl_encode(np.dstack([RGB, alpha]), lossless=True)

    pixels = read(file, background=(1, 2, 3))

    assert (pixels[:, :20] == (1, 2, 3)).all()
    np.testing.assert_array_equal(pixels[:, 20:], RGB[:, 20:])


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (8, 8),
        (8, 16),
        (16, 8),
        (256, 256),
        (30, 40),
        (40, 30),
        (48, 64),
        (301, 237),
        (300, 450),
        (1, 1),
        (520, 3),
        (9, 600),
    ],
)
def test_the_size_is_read_from_the_header(height: int, width: int) -> None:
    file = imagecodecs.jpegxl_encode(np.zeros((height, width, 3), np.uint8), lossless=True, effort=1)

    assert jxl.size(io.BytesIO(file[:40]), PictureOptions()) == (width, height)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(share: float) -> None:
    file = imagecodecs.jpegxl_encode(RGB, lossless=True)

    with pytest.raises(InvalidImage, match="damaged or truncated"):
        jxl.read(io.BytesIO(file[: int(share * len(file))]), PictureOptions())


@pytest.mark.parametrize("data", [b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\0free"])
def test_a_file_without_a_header_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="damaged or truncated: a JPEG XL picture"):
        jxl.size(io.BytesIO(data), PictureOptions())


def test_a_frame_that_does_not_exist_is_refused() -> None:
    for frames in (1, 2):
        file = imagecodecs.jpegxl_encode(RGB if frames == 1 else np.stack([RGB, RGB[::-1]]), lossless=True)
        with pytest.raises(InvalidRequest, match=f"page: is 3, and the file has {frames}, counted from 0"):
            jxl.read(io.BytesIO(file), PictureOptions(page=3))


def test_a_page_is_a_frame_of_the_animation() -> None:
    file = imagecodecs.jpegxl_encode(np.stack([RGB, RGB[::-1]]), lossless=True)

    np.testing.assert_array_equal(read(file), RGB)
    np.testing.assert_array_equal(read(file, page=1), RGB[::-1])


def test_fewer_bits_than_16_say_what_the_whole_range_is() -> None:
    file = imagecodecs.jpegxl_encode(RGB.astype(np.uint16) << 2, lossless=True, bitspersample=10)

    raster = jxl.read(io.BytesIO(file), PictureOptions())

    np.testing.assert_array_equal(raster.samples, RGB.astype(np.uint16) << 2)
    assert raster.full == (0, 1023)
