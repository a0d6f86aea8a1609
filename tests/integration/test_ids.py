"""Upload once, prompt many times: `/embed`, and an image_id in place of the image."""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deployments.errors import ImageNotCached, InvalidImage, InvalidRequest
from deployments.messages.calls import EmbeddedImage
from deployments.messages.prompt import Prompt
from harness.images import encoded, picture
from tests.integration.conftest import DEMO, NOT_CACHED, Service
from tests.integration.test_remembering import cache

ROUTE = "/segment-anything-2"
POINT = {"point_coords": "[[20,20]]", "point_labels": "[1]"}
UNKNOWN = hashlib.sha256(b"never sent").hexdigest()


def new_image(seed: int) -> bytes:
    """A small image that no other test has sent."""
    return encoded(picture(80, 60, seed=120_000 + seed))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def upload(client: httpx.Client, image: bytes, **fields: str) -> httpx.Response:
    return client.post(ROUTE, data={**POINT, **fields}, files={"image": image})


def by_id(client: httpx.Client, image_id: str, **fields: str) -> httpx.Response:
    return client.post(ROUTE, data={**POINT, "image_id": image_id, **fields})


def embed(client: httpx.Client, image: bytes, **fields: str) -> httpx.Response:
    return client.post(f"{ROUTE}/embed", data=fields, files={"image": image})


def assert_not_cached(response: httpx.Response) -> None:
    assert response.status_code == 404
    detail = response.json()["detail"]
    assert detail["code"] == "image_not_cached"
    assert detail["msg"].startswith("image_id: ")
    assert "upload" in detail["msg"]


def test_an_answers_own_id_stands_for_the_upload(client: httpx.Client) -> None:
    first = upload(client, new_image(1), multimask_output="false")
    again = by_id(client, first.headers["x-image-id"], multimask_output="false")
    assert again.status_code == 200, again.text
    assert again.content == first.content
    assert again.headers["x-image-id"] == first.headers["x-image-id"]
    assert [cache(first), cache(again)] == ["miss", "hit"]


def test_an_embedded_image_is_prompted_by_its_id(client: httpx.Client) -> None:
    image = new_image(2)
    response = embed(client, image)
    image_id = hashlib.sha256(image).hexdigest()
    assert response.status_code == 200, response.text
    assert response.json() == {"image_id": image_id, "width": 80, "height": 60, "model_id": DEMO}
    assert response.headers["x-image-id"] == image_id
    prompted = by_id(client, image_id)
    assert cache(prompted) == "hit"
    assert prompted.content == upload(client, image).content
    assert embed(client, image).json() == response.json()


def test_an_id_that_is_not_remembered_is_404_and_holds_nobody_up(client: httpx.Client) -> None:
    image = new_image(4)
    assert_not_cached(by_id(client, UNKNOWN))
    image_id = hashlib.sha256(image).hexdigest()
    assert_not_cached(by_id(client, image_id))
    # Asking by id was no promise of pixels, for which this request would wait ten seconds.
    response = upload(client, image)
    assert response.status_code == 200
    assert response.elapsed.total_seconds() < 8
    assert by_id(client, image_id).status_code == 200


def test_a_forgotten_image_has_to_be_uploaded_again(client: httpx.Client) -> None:
    image_id = embed(client, new_image(5)).json()["image_id"]
    assert client.delete(f"{ROUTE}/images/{image_id}").json()["forgotten"]
    assert_not_cached(by_id(client, image_id))
    assert embed(client, new_image(5)).json()["image_id"] == image_id
    assert by_id(client, image_id).status_code == 200


@pytest.mark.parametrize(
    "image_id", ["abc", "g" * 64, "A" * 64, "0" * 65, "../" * 20, " " * 64, "0" * 63 + "\n", "null"]
)
def test_what_is_no_id_is_refused(image_id: str, client: httpx.Client) -> None:
    response = by_id(client, image_id)
    assert response.status_code == 400, response.text
    assert response.json()["detail"]["msg"].startswith("image_id: ")


def test_image_and_id_together_are_refused(client: httpx.Client) -> None:
    response = upload(client, new_image(7), image_id=UNKNOWN)
    assert response.status_code == 400
    assert response.json()["detail"]["msg"].startswith("image_id: ")


def test_an_empty_id_counts_as_not_given(client: httpx.Client) -> None:
    assert upload(client, new_image(8), image_id="").status_code == 200
    response = by_id(client, "")
    assert response.status_code == 422
    assert [fault["loc"] for fault in response.json()["detail"]] == [["body", "image"]]


def test_a_sleeping_model_is_not_woken_for_an_id(client: httpx.Client) -> None:
    response = by_id(client, UNKNOWN, model_id=NOT_CACHED)
    assert_not_cached(response)
    assert NOT_CACHED in response.json()["detail"]["msg"]
    [model] = [model for model in client.get("/models").json()["models"] if model["model_id"] == NOT_CACHED]
    assert model["state"] == "asleep"


def test_an_id_as_a_file_is_refused_and_an_empty_file_beside_it_is_not(client: httpx.Client) -> None:
    image_id = embed(client, new_image(13)).json()["image_id"]
    response = client.post(ROUTE, files=[("image_id", ("id.txt", image_id.encode()))])
    assert response.status_code == 422
    assert [fault["loc"] for fault in response.json()["detail"]] == [["body", "image_id"]]
    # As a browser sends a file input that nobody used.
    boundary, empty = "b0undary", 'Content-Disposition: form-data; name="image"; filename=""\r\n'
    parts = [f'Content-Disposition: form-data; name="image_id"\r\n\r\n{image_id}', f"{empty}\r\n"]
    body = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts) + f"--{boundary}--\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    assert client.post(ROUTE, content=body.encode(), headers=headers).status_code == 200


def test_a_form_without_a_file_may_be_urlencoded_or_json(client: httpx.Client) -> None:
    image_id = embed(client, new_image(15)).json()["image_id"]
    expected = by_id(client, image_id, response_format="rle")
    fields = {**POINT, "image_id": image_id, "response_format": "rle"}
    assert client.post(ROUTE, data=fields).json() == expected.json()
    assert client.post(ROUTE, json=fields).json() == expected.json()
    arrays = {"point_coords": json.loads(POINT["point_coords"]), "point_labels": json.loads(POINT["point_labels"])}
    assert client.post(ROUTE, json=fields | arrays).json() == expected.json()
    assert_not_cached(client.post(ROUTE, data={**POINT, "image_id": UNKNOWN}))


def test_an_image_may_be_base64_and_the_body_packed(client: httpx.Client) -> None:
    image = new_image(16)
    expected = upload(client, image, response_format="rle")
    body = json.dumps({**POINT, "response_format": "rle", "image": base64.b64encode(image).decode()}).encode()
    headers = {"Content-Type": "application/json"}
    plain = client.post(ROUTE, content=body, headers=headers)
    packed = client.post(ROUTE, content=gzip.compress(body), headers={**headers, "Content-Encoding": "gzip"})
    assert plain.json() == packed.json() == expected.json()
    assert plain.headers["x-image-id"] == hashlib.sha256(image).hexdigest()


def test_an_answer_that_is_too_large_is_refused_by_id_too(client: httpx.Client) -> None:
    image_id = embed(client, encoded(picture(1600, 1200, seed=120_009), "JPEG")).json()["image_id"]
    boxes = str([[1, 1, 100, 100]] * 40)
    response = by_id(client, image_id, box=boxes, point_coords="", point_labels="")
    assert response.status_code == 413, response.text[:200]
    assert "numbers" in response.json()["detail"]["msg"]


@pytest.mark.parametrize(
    ("image", "fields", "status", "named"),
    [
        (b"", {}, 400, "image: "),
        (b"no image", {}, 400, "image: "),
        (new_image(10)[:-100], {}, 400, "image: "),
        (new_image(11), {"model_id": "facebook/sam3"}, 400, "model_id: "),
    ],
    ids=["empty", "no image", "truncated", "unknown model"],
)
def test_what_cannot_be_embedded_is_refused(
    image: bytes, fields: dict[str, str], status: int, named: str, client: httpx.Client
) -> None:
    response = embed(client, image, **fields)
    assert response.status_code == status, response.text
    assert response.json()["detail"]["msg"].startswith(named)


def test_embed_needs_an_image_and_a_form(client: httpx.Client) -> None:
    response = client.post(f"{ROUTE}/embed", files=[("model_id", (None, b""))])
    assert response.status_code == 422
    assert [fault["loc"] for fault in response.json()["detail"]] == [["body", "image"]]
    assert client.post(f"{ROUTE}/embed", json={}).status_code == 422
    assert client.get(f"{ROUTE}/embed").status_code == 405
    assert client.post(f"{ROUTE}/embed/", files={"image": new_image(14)}).status_code == 200
    assert embed(client, bytes(21 * 2**20)).status_code == 413


def test_handle_calls_embed_and_name_images_too(service: Service) -> None:
    from ray import serve

    handle: Any = serve.get_app_handle("segment-anything-2")
    embedded = handle.embed.remote(new_image(12)).result(timeout_s=60)
    assert embedded == EmbeddedImage(hashlib.sha256(new_image(12)).hexdigest(), DEMO, (60, 80))
    prompt = Prompt(point_coords=[[20, 20]], point_labels=[1])
    segmentation = handle.segment.remote(prompt=prompt, image_id=embedded.image_id).result(timeout_s=60)
    assert segmentation.image_id == embedded.image_id
    assert segmentation.image_size == (60, 80)
    for arguments, error in (
        ({"image_id": UNKNOWN}, ImageNotCached),
        ({"image_id": "abc"}, InvalidRequest),
        ({"image": new_image(12), "image_id": embedded.image_id}, InvalidRequest),
        ({}, InvalidImage),
    ):
        with pytest.raises(error):
            handle.segment.remote(prompt=prompt, **arguments).result(timeout_s=60)
