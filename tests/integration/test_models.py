"""What a model's state means for a request: asleep, loading, ready, failed, and mended."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import httpx
import pytest

from harness.images import encoded, picture
from tests.integration.conftest import DEMO, MISSING_FILE, NOT_CACHED, OWN, WRONG_CHECKPOINT, Service

IMAGE = encoded(picture(160, 120))

FirstAnswers: TypeAlias = dict[str, tuple[httpx.Response, float]]


@pytest.fixture(scope="module")
def first_answers(service: Service) -> FirstAnswers:
    """The answers to the first requests for models that sleep, sent at the same time, and their seconds."""

    def timed(model_id: str) -> tuple[httpx.Response, float]:
        started = time.monotonic()
        return ask(client, model_id), time.monotonic() - started

    model_ids = (OWN, NOT_CACHED, WRONG_CHECKPOINT, MISSING_FILE)
    with service.client() as client, ThreadPoolExecutor(len(model_ids)) as pool:
        return dict(zip(model_ids, pool.map(timed, model_ids), strict=True))


def ask(client: httpx.Client, model_id: str) -> httpx.Response:
    fields = {"model_id": model_id, "point_coords": "[[40,40]]", "point_labels": "[1]", "return_logits": "false"}
    return client.post("/segment-anything-2", data=fields, files={"image": IMAGE})


def states(client: httpx.Client) -> dict[str, dict[str, str]]:
    return {model["model_id"]: model for model in client.get("/models").json()["models"]}


def reaches(client: httpx.Client, model_id: str, state: str) -> dict[str, str]:
    """What /models says of a model, once it is in a state; it may be a second behind."""
    deadline = time.monotonic() + 30
    while (model := states(client)[model_id])["state"] != state:
        assert time.monotonic() < deadline, model
        time.sleep(0.2)
    return model


def test_a_sleeping_model_wakes_on_its_first_request(service: Service, first_answers: FirstAnswers) -> None:
    response, _ = first_answers[OWN]
    assert response.status_code == 200, response.text
    with service.client() as client:
        reaches(client, OWN, "ready")


@pytest.mark.parametrize(
    ("model_id", "cause"),
    [
        (NOT_CACHED, "is not in the hub cache"),
        (WRONG_CHECKPOINT, "does not fit the configuration"),
    ],
)
def test_a_model_that_cannot_load_says_why_and_disturbs_no_other(
    service: Service, first_answers: FirstAnswers, model_id: str, cause: str
) -> None:
    response, seconds = first_answers[model_id]
    # As soon as the failure is known, not at the end of the 150 s for which a request waits for its model.
    assert seconds < 140
    with service.client() as client:
        message = response.json()["detail"]["msg"]
        assert response.status_code == 503
        assert model_id in message
        assert cause in message
        assert int(response.headers["Retry-After"]) > 0
        assert cause in reaches(client, model_id, "failed")["detail"]
        started = time.monotonic()
        assert ask(client, model_id).status_code == 503
        # A request would wait for the model itself for 150 s.
        assert time.monotonic() - started < 30, "a known failure is answered at once"
        assert ask(client, DEMO).status_code == 200
        assert client.get("/ready").status_code == 200
        assert client.get("/health").json() == {"status": "OK"}


def test_a_models_images_are_its_own(service: Service, first_answers: FirstAnswers) -> None:
    image_id = first_answers[OWN][0].headers["x-image-id"]
    with service.client() as client:
        client.delete(f"/segment-anything-2/images/{image_id}")
        assert ask(client, OWN).status_code == 200
        # As multipart without a file.
        statuses = {
            model_id: client.post(
                "/segment-anything-2",
                files=[("model_id", (None, model_id.encode())), ("image_id", (None, image_id.encode()))],
            ).status_code
            for model_id in (OWN, DEMO)
        }
    assert statuses == {OWN: 200, DEMO: 404}


def test_a_model_whose_file_arrives_later_is_served_then(service: Service, first_answers: FirstAnswers) -> None:
    response, _ = first_answers[MISSING_FILE]
    assert response.status_code == 503
    assert "no such file" in response.json()["detail"]["msg"]
    with service.client() as client:
        shutil.copy(service.own_checkpoint, service.folder / "later.pt")
        deadline = time.monotonic() + 60
        while (response := ask(client, MISSING_FILE)).status_code == 503 and time.monotonic() < deadline:
            time.sleep(1)
        assert response.status_code == 200, response.text
        assert response.json()["scores"] == ask(client, OWN).json()["scores"]
