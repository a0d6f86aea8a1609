"""Many requests at once: each gets its own answer."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation
from harness.images import encoded, picture
from harness.reference import Answer, json_text, parse_answer
from tests import caller_app
from tests.integration.conftest import DEMO, Service

IMAGE = encoded(picture(320, 240, 3))
# A grid of points, so that no two requests ask for the same; every other asks for one mask.
PROMPTS = [
    Prompt(point_coords=[[x, y]], point_labels=[1], multimask_output=(x + y) // 10 % 2 == 0)
    for y in (30, 90, 150, 210)
    for x in (20, 90, 160, 230, 300)
]
TOLERANCE = 1e-4


def answer(segmentation: Segmentation) -> Answer:
    return Answer(segmentation.masks(return_logits=True), segmentation.scores, segmentation.logits)


def agree(one: Answer, other: Answer) -> bool:
    """Whether two answers are the same but for float noise."""
    return all(
        a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=TOLERANCE)) for a, b in zip(one, other, strict=True)
    )


def assert_each_has_its_own(answers: list[Answer], expected: list[Answer]) -> None:
    assert len(answers) == len(expected)
    owners = [[index for index, other in enumerate(expected) if agree(one, other)] for one in answers]
    assert owners == [[index] for index in range(len(expected))]


@pytest.fixture(scope="module")
def one_by_one(service: Service) -> list[Answer]:
    """The answers to PROMPTS asked one after the other."""
    from ray import serve

    handle: Any = serve.get_app_handle("segment-anything-2")
    return [answer(handle.segment.remote(IMAGE, prompt, model_id=DEMO).result(timeout_s=120)) for prompt in PROMPTS]


def test_twenty_http_requests_at_once_get_each_its_own_answer(service: Service, one_by_one: list[Answer]) -> None:
    start = threading.Barrier(len(PROMPTS))

    def post(prompt: Prompt) -> Answer:
        assert prompt.point_coords is not None
        data = {
            "model_id": DEMO,
            "point_coords": json_text(prompt.point_coords),
            "point_labels": "[1]",
            "multimask_output": str(prompt.multimask_output),
        }
        with service.client() as client:
            start.wait(60)
            response = client.post("/segment-anything-2", data=data, files={"image": IMAGE})
        assert response.status_code == 200, response.text[:500]
        return parse_answer(response.content)

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        assert_each_has_its_own(list(threads.map(post, PROMPTS)), one_by_one)


@pytest.fixture
def caller(service: Service) -> Iterator[Any]:
    """The handle of a second application on the same Serve."""
    from ray import serve

    yield serve.run(caller_app.build(), name="caller", route_prefix="/caller")
    serve.delete("caller")


def test_twenty_calls_at_once_from_inside_another_deployment_get_each_its_own_answer(
    caller: Any, one_by_one: list[Answer]
) -> None:
    segmentations = caller.segment_all.remote(IMAGE, PROMPTS, DEMO).result(timeout_s=120)
    assert_each_has_its_own([answer(segmentation) for segmentation in segmentations], one_by_one)


def test_requests_for_many_images_at_once_get_each_the_masks_of_its_own(service: Service) -> None:
    from ray import serve

    # By twos of the same size, which share a shape but no pixels.
    images = [encoded(picture(60 + index // 2 * 20, 50, seed=index)) for index in range(12)]
    handle: Any = serve.get_app_handle("segment-anything-2")

    def segment(image: bytes) -> Any:
        return handle.segment.remote(image, PROMPTS[0], model_id=DEMO)

    responses = [segment(image) for image in images]
    answers = [answer(response.result(timeout_s=120)) for response in responses]
    # One by one, and not from memory, which could have mixed them up.
    for image in images:
        assert handle.forget.remote(hashlib.sha256(image).hexdigest()).result(timeout_s=60)
    assert_each_has_its_own(answers, [answer(segment(image).result(timeout_s=120)) for image in images])
