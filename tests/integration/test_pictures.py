"""Pictures of more than 8 bits over HTTP: they are segmented as they are seen, and the answer says in which window."""

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pycocotools import mask as coco

from deployments.client import Client
from harness.images import encoded, iou, picture
from tests.integration.conftest import Service
from tests.pictures import scene, tiff

ROUTE = "/segment-anything-2"
ROWS, COLUMNS = np.ogrid[:240, :320]
DISC = (COLUMNS - 210) ** 2 + (ROWS - 90) ** 2 < 45**2


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def post(client: httpx.Client, image: bytes | None, path: str = ROUTE, **fields: str) -> httpx.Response:
    parts: list[Any] = [(name, (None, text.encode())) for name, text in fields.items()]
    if image is not None:
        parts.append(("image", ("image.tif", io.BytesIO(image))))
    return client.post(path, files=parts)


CLICK = {"point_coords": "[[210,90]]", "point_labels": "[1]", "response_format": "rle"}


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(260, 490, np.uint16), (-850, 1200, np.int16), (1200, 1800, np.float32), (0, 1, np.float64)],
)
def test_the_disc_is_found_whatever_the_samples_are(low: int, high: int, dtype: Any, client: httpx.Client) -> None:
    image = tiff(scene(low, high, dtype))

    first, second = post(client, image, **CLICK), post(client, image, **CLICK)

    assert first.status_code == 200, first.text
    best = coco.decode(json.loads(first.content)["masks"][0]["segmentation"])
    assert iou(best, DISC) > 0.9
    window = [float(bound) for bound in first.headers["x-image-window"].split(",")]
    assert low < window[0] < window[1] < high
    # The model remembers the picture now; the answer says the window all the same.
    assert second.headers["x-image-window"] == first.headers["x-image-window"]
    assert second.headers["x-image-id"] == first.headers["x-image-id"]


def test_options_give_a_picture_of_its_own(client: httpx.Client) -> None:
    image = tiff(scene(0, 900, np.uint16))
    auto, full, given = (post(client, image, f"{ROUTE}/embed", window=window) for window in ("", "full", "100,800"))

    assert [answer.status_code for answer in (auto, full, given)] == [200] * 3
    assert (full.headers["x-image-window"], given.headers["x-image-window"]) == ("0,65535", "100,800")
    assert len({answer.headers["x-image-id"] for answer in (auto, full, given)}) == 3
    by_id = post(client, None, image_id=given.headers["x-image-id"], **CLICK)
    assert by_id.status_code == 200


def test_8_bits_have_no_window(client: httpx.Client) -> None:
    assert "x-image-window" not in post(client, encoded(picture(64, 48)), f"{ROUTE}/embed").headers


@pytest.mark.parametrize("path", [ROUTE, f"{ROUTE}/auto", f"{ROUTE}/embed"])
@pytest.mark.parametrize("field", ["window", "bands", "page", "background"])
def test_an_option_that_is_none_is_refused_by_its_name(field: str, path: str, client: httpx.Client) -> None:
    answer = post(client, encoded(picture(64, 48)), path, **{field: "none of these"})

    assert answer.status_code == 400
    assert answer.json()["detail"]["msg"].startswith(f"{field}: ")


def test_options_beside_an_id_are_refused(client: httpx.Client) -> None:
    answer = post(client, None, image_id="0" * 64, window="full", **CLICK)

    assert answer.status_code == 400
    assert answer.json()["detail"]["msg"].startswith("window: goes with image")


def test_the_client_says_how_a_picture_is_read(service: Service) -> None:
    array = np.stack([np.zeros((240, 320), np.uint16)] * 3 + [scene(100, 900, np.uint16)], 2)
    with Client(service.url) as client:
        image = client.image(array, bands=[4])
        masks = [client.segment(image, point_coords=[[210, 90]], point_labels=[1]).masks[0] for _ in range(2)]

    assert iou(masks[0], DISC) > 0.9
    assert (masks[0] == masks[1]).all()
