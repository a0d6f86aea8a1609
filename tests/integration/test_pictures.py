"""Pictures of more than 8 bits over HTTP: they are segmented as they are seen, and the answer says in which window."""

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pycocotools import mask as coco
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from rasterio.warp import transform as warped
from shapely.geometry import Point, shape

from deployments.client import Client
from harness.images import encoded, iou, picture
from tests.integration.conftest import Service
from tests.pictures import scene, tiff

ROUTE = "/segment-anything-2"
UTM = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_540_000.0)
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


def test_masks_of_a_geotiff_lie_on_the_map(client: httpx.Client) -> None:
    image = geotiff(scene(260, 490, np.uint16))
    polygons = post(client, image, **CLICK | {"response_format": "polygons"}, coordinates="map")
    assert polygons.status_code == 200, polygons.text
    disc = shape(polygons.json()["masks"][0]["segmentation"])
    # The middle of the disc, 10 m a pixel.
    [x], [y] = warped("EPSG:32633", "EPSG:4326", [500_000 + 2100.0], [5_540_000 - 900.0])
    assert disc.contains(Point(x, y))
    assert disc.centroid.distance(Point(x, y)) < 0.0005

    answer = post(client, image, **CLICK | {"response_format": "geotiff"})
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''image.tif"
    with MemoryFile(answer.content) as memory, memory.open() as file:
        assert (file.crs, file.transform) == (CRS.from_epsg(32633), UTM)
        assert iou(file.read(1) > 0, DISC) > 0.9


@pytest.mark.parametrize(
    "fields", [{"response_format": "polygons", "coordinates": "map"}, {"response_format": "geotiff"}]
)
def test_without_a_georeference_there_is_no_map(fields: dict[str, str], client: httpx.Client) -> None:
    answer = post(client, tiff(scene(260, 490, np.uint16)), **CLICK | fields)
    assert answer.status_code == 400
    assert answer.json()["detail"]["msg"].startswith(
        "coordinates: " if "coordinates" in fields else "response_format: "
    )


def geotiff(samples: Any) -> bytes:
    height, width = samples.shape[:2]
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=width, height=height, count=1, dtype=samples.dtype, crs="EPSG:32633", transform=UTM
        ) as file:
            file.write(samples.reshape(height, width), 1)
        return bytes(memory.getbuffer())
