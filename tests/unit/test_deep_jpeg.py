"""JPEG, JPEG-LS and JPEG 2000 of more than 8 bits keep their samples."""

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from deployments.errors import InvalidImage, InvalidRequest
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import deep_jpeg
from harness.images import encoded, picture

DEFAULT = PictureOptions()
# Levels of a dim camera, of which the high byte says nothing.
GREY = np.random.default_rng(0).integers(260, 490, (30, 40), dtype=np.uint16)
COLOURS = np.random.default_rng(1).integers(260, 490, (30, 40, 3), dtype=np.uint16)


def read(file: bytes | bytearray) -> Any:
    assert deep_jpeg.matches(bytes(file))
    raster = deep_jpeg.read(io.BytesIO(file), DEFAULT)
    assert deep_jpeg.size(io.BytesIO(file), DEFAULT) == raster.samples.shape[1::-1]
    assert deep_jpeg.is_deep(io.BytesIO(file), DEFAULT)
    return raster


@pytest.mark.parametrize(
    ("file", "samples", "bits"),
    [
        (imagecodecs.jpeg8_encode(GREY, lossless=True, bitspersample=12), GREY, 12),
        (imagecodecs.jpeg8_encode(GREY, lossless=True, bitspersample=16), GREY, 16),
        (imagecodecs.jpegls_encode(GREY), GREY, 16),
        (imagecodecs.jpeg2k_encode(GREY, level=0, reversible=True), GREY, 16),
        (imagecodecs.jpeg2k_encode(COLOURS, level=0, reversible=True), COLOURS, 16),
        (imagecodecs.jpeg2k_encode(COLOURS, level=0, reversible=True, bitspersample=12), COLOURS, 12),
        (imagecodecs.jpeg2k_encode(COLOURS, level=0, reversible=True, codecformat="J2K"), COLOURS, 16),
    ],
    ids=["jpeg-12", "jpeg-16", "jpeg-ls", "jp2-grey", "jp2", "jp2-12", "j2k"],
)
def test_lossless_files_give_their_samples(file: bytes, samples: Any, bits: int) -> None:
    raster = read(bytes(file))

    np.testing.assert_array_equal(raster.samples, samples.reshape(raster.samples.shape))
    assert raster.full is not None
    assert raster.full[0] == 0
    assert 2**9 < raster.full[1] <= 2**bits - 1


@pytest.mark.parametrize("value", range(1, 9))
def test_a_photograph_is_turned_upright_as_its_metadata_say(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    segment = exif.tobytes()
    stored = bytes(imagecodecs.jpeg8_encode(GREY, lossless=True, bitspersample=12))
    file = stored[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + stored[2:]
    # Pillow turns 32-bit samples as it does others.
    plain = Image.fromarray(GREY.astype(np.int32))
    plain.getexif()[0x0112] = value

    np.testing.assert_array_equal(read(file).samples[:, :, 0], np.asarray(ImageOps.exif_transpose(plain)))


def test_12_bit_jpeg_gives_nearly_its_samples() -> None:
    smooth = (np.add.outer(np.arange(30), np.arange(40)) * 50).astype(np.uint16)

    raster = read(imagecodecs.jpeg8_encode(smooth, level=95, bitspersample=12))

    assert np.abs(raster.samples[:, :, 0].astype(int) - smooth).mean() < 30
    assert raster.full == (0, 4095)


@pytest.mark.parametrize(
    "file",
    [
        encoded(picture(40, 30), "JPEG"),
        encoded(picture(40, 30), "JPEG2000"),
        encoded(picture(40, 30)),
        b"",
        b"\xff\xd8\xff\xc0",
    ],
    ids=["jpeg", "jp2", "png", "nothing", "cut off"],
)
def test_files_of_8_bits_are_left_to_pillow(file: bytes) -> None:
    assert not deep_jpeg.matches(file)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_truncated_file_is_refused(share: float) -> None:
    file = imagecodecs.jpegls_encode(GREY)

    with pytest.raises(InvalidImage, match="damaged or truncated"):
        deep_jpeg.read(io.BytesIO(file[: int(share * len(file))]), DEFAULT)


def test_there_is_one_page() -> None:
    with pytest.raises(InvalidRequest, match="page: is 1, and the file has 1, counted from 0"):
        deep_jpeg.size(io.BytesIO(imagecodecs.jpegls_encode(GREY)), PictureOptions(page=1))
