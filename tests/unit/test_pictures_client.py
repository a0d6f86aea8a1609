"""What the client sends is what the service's own rule makes of the same array, under the same name."""

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from deployments.client import Client, ImageFile
from deployments.messages.picture_options import PictureOptions, Plane
from deployments.parsing.images import identify
from deployments.settings import Limits
from harness.images import encoded, picture
from tests.pictures import scene

LIMITS = Limits()


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i1", "<u2", ">u2", "i2", "u4", ">i4", "u8", "i8", "f2", "f4", ">f8", np.longdouble]
)
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4, 5])
def test_an_array_is_shown_as_on_a_handle(dtype: Any, channels: int) -> None:
    top = 1 if dtype == "?" else 120
    planes = [scene(0, top - band, dtype)[::3, ::4] for band in range(max(1, channels))]
    array = np.stack(planes, 2) if channels else planes[0]

    sent = identify(ImageFile.of(array).data, LIMITS)

    np.testing.assert_array_equal(sent.decode(LIMITS), identify(array, LIMITS).decode(LIMITS))


@pytest.mark.parametrize("dtype", ["i1", "u2", "u4", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_an_array_is_sent_without_loss(dtype: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (9, 7, channels, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]

    data = ImageFile.of(array).data

    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)).reshape(array.shape), array)


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_a_pil_image_is_shown_as_on_a_handle(mode: str) -> None:
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    image = Image.fromarray(scene(0, 900, deep[mode])) if mode in deep else picture(40, 30).convert(mode)

    sent = identify(ImageFile.of(image).data, LIMITS)

    np.testing.assert_array_equal(sent.decode(LIMITS), identify(image, LIMITS).decode(LIMITS))


@pytest.mark.parametrize(
    ("reading", "options"),
    [
        ({}, PictureOptions()),
        ({"window": "auto", "bands": None, "page": 0, "background": (255, 255, 255)}, PictureOptions()),
        ({"window": "full"}, PictureOptions("full")),
        ({"window": (-160, 240.5)}, PictureOptions((-160, 240.5))),
        ({"window": (1e-7, np.float64(1e22))}, PictureOptions((1e-7, 1e22))),
        ({"bands": [3, 2, 1], "background": (1, 2, 255)}, PictureOptions(bands=(3, 2, 1), background=(1, 2, 255))),
        ({"page": {"c": 1}}, PictureOptions(page=Plane(1))),
        ({"page": {"z": 2, "t": 3}}, PictureOptions(page=Plane(0, 2, 3))),
        ({"page": 4}, PictureOptions(page=4)),
    ],
    ids=str,
)
def test_an_image_has_the_name_that_the_service_gives_it(reading: Any, options: PictureOptions) -> None:
    buffer = io.BytesIO()
    sizes = {"axes": "TZCYX"}
    tifffile.imwrite(buffer, np.zeros((4, 3, 2, 8, 9), np.uint16), ome=True, photometric="minisblack", metadata=sizes)
    data = buffer.getvalue()

    with Client("http://127.0.0.1:1") as client:
        image = client.image(data, **reading)

    assert PictureOptions.parse(**dict(image.reading)) == options
    assert image.image_id == identify(data, LIMITS, options=options).image_id


def test_wrong_arguments_raise_where_they_are_given() -> None:
    with pytest.raises(TypeError, match="unexpected keyword arguments: band"):
        ImageFile.of(b"", band=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="says already how it is read"):
        ImageFile.of(ImageFile.of(encoded(picture(4, 4))), window="full")
    with pytest.raises(TypeError, match="must be an array of numbers, H×W or H×W×C, is one of float32, 2×2×2×2"):
        ImageFile.of(np.zeros((2, 2, 2, 2), np.float32))
