"""Camera raw: the developed picture and never its preview; ordinary TIFF files are left to others."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile

from deployments.errors import InvalidImage, InvalidRequest
from deployments.messages.picture_options import PictureOptions
from deployments.pictures import camera_raw
from deployments.pictures.reader import inspect
from harness.images import encoded, picture

HEIGHT, WIDTH = 96, 128
DEFAULT = PictureOptions()

BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL = 1, 2, 3, 4, 5, 10


def mosaic() -> Any:
    """What a sensor with red, green, green and blue filters sees: red light on the left, blue light on the right."""
    samples = np.full((HEIGHT, WIDTH), 1000, np.uint16)
    samples[0::2, : WIDTH // 2 : 2] = 14000
    samples[1::2, WIDTH // 2 + 1 :: 2] = 14000
    return samples


def dng(orientation: int = 1, preview: Any = None) -> bytes:
    """A DNG file of the mosaic; with a preview, that is its first picture and the mosaic hangs on it."""
    common = [
        (50706, BYTE, 4, b"\1\4\0\0", True),
        (50707, BYTE, 4, b"\1\1\0\0", True),
        (271, ASCII, 0, "Test", True),
        (272, ASCII, 0, "Camera", True),
        (50708, ASCII, 0, "Test Camera", True),
        (274, SHORT, 1, orientation, True),
        (50721, SRATIONAL, 9, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1), True),
        (50728, RATIONAL, 3, (1, 1, 1, 1, 1, 1), True),
        (50778, SHORT, 1, 21, True),
    ]
    sensor = [
        (33421, SHORT, 2, (2, 2), True),
        (33422, BYTE, 4, b"\0\1\1\2", True),
        (50714, SHORT, 1, 0, True),
        (50717, SHORT, 1, 16383, True),
    ]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        if preview is not None:
            writer.write(preview, photometric="rgb", subfiletype=1, extratags=common, subifds=1, metadata=None)
        writer.write(
            mosaic(),
            photometric=32803,
            subfiletype=0,
            extratags=sensor if preview is not None else [*common, *sensor],
            metadata=None,
        )
    return buffer.getvalue()


def read(data: bytes) -> Any:
    assert camera_raw.is_raw_tiff(io.BytesIO(data))
    pixels = camera_raw.read(io.BytesIO(data), DEFAULT).samples
    assert camera_raw.size(io.BytesIO(data), DEFAULT) == pixels.shape[1::-1]
    assert pixels.dtype == np.uint8
    return pixels


def is_red(pixel: Any) -> bool:
    red, green, blue = (int(part) for part in pixel)
    return red > 2 * max(green, blue)


def is_blue(pixel: Any) -> bool:
    red, green, blue = (int(part) for part in pixel)
    return blue > 2 * max(red, green)


def test_the_picture_is_developed() -> None:
    pixels = read(dng())

    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert is_red(pixels[48, 30])
    assert is_blue(pixels[48, 98])


@pytest.mark.parametrize(
    ("orientation", "red", "blue"), [(3, (48, 98), (48, 30)), (6, (30, 48), (98, 48)), (8, (98, 48), (30, 48))]
)
def test_it_is_turned_upright(orientation: int, red: tuple[int, int], blue: tuple[int, int]) -> None:
    pixels = read(dng(orientation))

    assert pixels.shape[:2] == ((HEIGHT, WIDTH) if orientation == 3 else (WIDTH, HEIGHT))
    assert is_red(pixels[red])
    assert is_blue(pixels[blue])


def test_the_preview_is_not_taken_for_the_picture() -> None:
    pixels = read(dng(preview=np.full((24, 32, 3), 77, np.uint8)))

    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert is_red(pixels[48, 30])


def test_there_is_one_page() -> None:
    with pytest.raises(InvalidRequest, match="page: is 1, and the file has 1, counted from 0"):
        camera_raw.read(io.BytesIO(dng()), PictureOptions(page=1))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_file_is_refused(share: float) -> None:
    data = dng()

    with pytest.raises(InvalidImage, match="image: is "):
        camera_raw.read(io.BytesIO(data[: int(share * len(data))]), DEFAULT)


@pytest.mark.parametrize(
    "head", [b"FUJIFILMCCD-RAW 0201", b"IIU\0\x18\0\0\0", b"\0\0\0\x18ftypcrx \0\0\0\1", b"II*\0\x10\0\0\0CR\2\0"]
)
def test_raw_files_with_a_signature_are_known_and_refused_if_damaged(head: bytes) -> None:
    assert camera_raw.matches(head)
    with pytest.raises(InvalidImage, match="a camera raw file"):
        camera_raw.size(io.BytesIO(head + bytes(500)), DEFAULT)


def tiff(**options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, options.pop("pixels", np.asarray(picture(40, 30))), **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        tiff(photometric="rgb"),
        tiff(photometric="rgb", extratags=[(271, ASCII, 0, "NIKON CORPORATION", True), (272, ASCII, 0, "D850", True)]),
        tiff(photometric="rgb", compression="packbits"),
        tiff(photometric="rgb", compression="lzw", tile=(16, 16)),
        tiff(photometric="rgb", bigtiff=True),
        tiff(pixels=np.zeros((4, 30, 40), np.uint16), photometric="minisblack"),
        tiff(photometric="rgb", byteorder=">"),
        encoded(picture(40, 30)),
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
    ],
    ids=str,
)
def test_other_files_are_not_taken(data: bytes) -> None:
    assert not camera_raw.matches(data[:65536])
    assert not camera_raw.is_raw_tiff(io.BytesIO(data))


def test_a_tiff_with_a_preview_first_is_not_taken() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(np.zeros((8, 8, 3), np.uint8), photometric="rgb", subfiletype=1, subifds=1)
        writer.write(np.zeros((64, 64, 3), np.uint8), photometric="rgb")

    assert not camera_raw.is_raw_tiff(buffer)


def directory_last(data: bytes, gap: int) -> bytes:
    """The file with a copy of its first directory behind everything else, which alone its header names."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    [offset] = struct.unpack_from(f"{order}I", data, 4)
    [entries] = struct.unpack_from(f"{order}H", data, offset)
    whole = data + bytes(gap + len(data) % 2)
    header = whole[:4] + struct.pack(f"{order}I", len(whole)) + whole[8:]
    return header[:offset] + bytes(2) + header[offset + 2 :] + data[offset : offset + 2 + 12 * entries + 4]


def test_a_dng_whose_directory_ends_the_file_is_no_plain_tiff() -> None:
    usual, late = dng(), directory_last(dng(), gap=100_000)

    facts = inspect(io.BytesIO(late), DEFAULT, 10**6)

    assert facts.kind == "raw"
    assert (facts.width, facts.height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(read(late), read(usual))
    plain = directory_last(tiff(photometric="rgb"), gap=100_000)
    assert inspect(io.BytesIO(plain), DEFAULT, 10**6).kind == "tiff"
