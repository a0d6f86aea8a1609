"""What the service remembers: one encoder run for an image, the same replica for it, and nothing it must forget."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.messages.prompt import Prompt
from harness.images import encoded, picture
from harness.reference import parse_answer
from harness.serve import deploy
from tests.integration.conftest import DEMO, Service, config_document

FIELDS = {"point_coords": "[[20,20]]", "point_labels": "[1]", "multimask_output": "false", "return_logits": "false"}
TIMING = re.compile(r"(\w+);(?:dur=([\d.]+)|desc=\"(\w+)\")")


def ask(client: httpx.Client, image: bytes, model_id: str = DEMO, **fields: str) -> httpx.Response:
    response = client.post(
        "/segment-anything-2", data={**FIELDS, "model_id": model_id, **fields}, files={"image": image}
    )
    assert response.status_code == 200, response.text
    return response


def timings(response: httpx.Response) -> dict[str, Any]:
    """The Server-Timing header: milliseconds by name, and `cache`."""
    found = TIMING.findall(response.headers["server-timing"])
    return {name: float(dur) if dur else desc for name, dur, desc in found}


def cache(response: httpx.Response) -> str:
    return str(timings(response)["cache"])


def new_image(seed: int) -> bytes:
    """A small image that no other test has sent."""
    return encoded(picture(64, 48, seed=90_000 + seed))


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def test_the_second_prompt_on_an_image_runs_no_encoder_and_gives_the_same_masks(client: httpx.Client) -> None:
    first, second = (ask(client, new_image(1)) for _ in range(2))
    assert [cache(first), cache(second)] == ["miss", "hit"]
    assert list(timings(first)) == ["parse", "queue", "embed", "decode", "encode", "cache"]
    assert timings(first)["embed"] > 5 * timings(second)["embed"]
    assert first.headers["x-image-id"] == second.headers["x-image-id"]
    assert first.content == second.content


def test_ten_requests_at_once_for_a_new_image_cost_one_run_of_the_encoder(client: httpx.Client) -> None:
    with ThreadPoolExecutor(10) as threads:
        responses = list(threads.map(lambda _: ask(client, new_image(2)), range(10)))
    assert sorted(map(cache, responses)) == ["hit"] * 9 + ["miss"]
    for response in responses[1:]:
        np.testing.assert_allclose(
            parse_answer(response.content).logits, parse_answer(responses[0].content).logits, atol=1e-3
        )


def test_a_damaged_image_fails_for_all_who_sent_it_at_once_and_soon(client: httpx.Client) -> None:
    # Its header is whole, so that one of the ten is asked for its pixels.
    damaged = encoded(picture(600, 400, seed=90_003))[:-2000]

    def post(_: int) -> httpx.Response:
        return client.post("/segment-anything-2", data={**FIELDS, "model_id": DEMO}, files={"image": damaged})

    started = time.monotonic()
    with ThreadPoolExecutor(10) as threads:
        responses = list(threads.map(post, range(10)))
    assert {response.status_code for response in responses} == {400}
    assert all("image: is damaged or truncated" in response.text for response in responses)
    # Ten times the time after which a silent sender is given up would be 100 s.
    assert time.monotonic() - started < 20


def test_a_forgotten_image_is_embedded_again(client: httpx.Client, service: Service) -> None:
    image_id = ask(client, new_image(4)).headers["x-image-id"]
    path = f"/segment-anything-2/images/{image_id}"
    assert client.delete(path).json() == {"image_id": image_id, "forgotten": True}
    assert client.delete(path).json() == {"image_id": image_id, "forgotten": False}
    assert cache(ask(client, new_image(4))) == "miss"

    from ray import serve

    handle: Any = serve.get_app_handle("segment-anything-2")
    assert handle.forget.remote(image_id).result(timeout_s=60)
    assert cache(ask(client, new_image(4))) == "miss"


@pytest.mark.parametrize("image_id", ["", "abc", "g" * 64, "A" * 64, "0" * 65, "..%2F..%2Fetc"])
def test_what_is_no_image_id_cannot_be_forgotten(image_id: str, client: httpx.Client) -> None:
    response = client.delete(f"/segment-anything-2/images/{image_id}")
    assert response.status_code in ((404,) if image_id in ("", "..%2F..%2Fetc") else (400,))
    assert response.json()["detail"]["msg"]


def test_handle_calls_share_what_is_remembered(client: httpx.Client, service: Service) -> None:
    from ray import serve

    handle: Any = serve.get_app_handle("segment-anything-2")
    segmentation = handle.segment.remote(new_image(5), Prompt(), model_id=DEMO).result(timeout_s=60)
    response = ask(client, new_image(5))
    assert cache(response) == "hit"
    assert response.headers["x-image-id"] == segmentation.image_id


def test_limits_of_the_memory_are_live(client: httpx.Client, service: Service) -> None:
    document = config_document(int(service.url.rpartition(":")[2]), service.folder, service.own_config)
    entry = next(one for one in document["applications"][0]["deployments"] if one["name"] == f"Sam2Model:{DEMO}")
    try:
        ask(client, new_image(6))
        entry["user_config"]["cache_bytes"] = 0
        deploy(document)
        assert [cache(ask(client, new_image(6))) for _ in range(2)] == ["miss", "miss"]
    finally:
        del entry["user_config"]["cache_bytes"]
        deploy(document)
    assert [cache(ask(client, new_image(6))) for _ in range(2)] == ["miss", "hit"]
