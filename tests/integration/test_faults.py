"""A replica that dies costs its callers time, not their answers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from harness.images import encoded, picture
from tests.integration.conftest import DEMO, Service

FIELDS = {"point_coords": "[[40,40]]", "point_labels": "[1]", "model_id": DEMO}


def kill_replicas(deployment: str) -> int:
    """Kills every replica of a deployment, as a crash would; returns how many."""
    import ray
    from ray.util import list_named_actors

    names = [entry["name"] for entry in list_named_actors(all_namespaces=True)]
    replicas = [name for name in names if name.startswith("SERVE_REPLICA::") and f"#{deployment}#" in name]
    for name in replicas:
        ray.kill(ray.get_actor(name, namespace="serve"))
    return len(replicas)


def embedded(client: httpx.Client, image: bytes) -> str:
    """The id of an image that the model remembers now."""
    response = client.post("/segment-anything-2/embed", data={"model_id": DEMO}, files={"image": image})
    assert response.status_code == 200, response.text
    return str(response.json()["image_id"])


def test_requests_survive_the_death_of_replicas(service: Service) -> None:
    image = encoded(picture(960, 720))
    at_work = threading.Event()

    def ask(client: httpx.Client) -> NDArray[np.float32]:
        with client.stream("POST", "/segment-anything-2", data=FIELDS, files={"image": image}) as response:
            at_work.set()
            body = response.read()
        assert response.status_code == 200, body
        return np.array(orjson.loads(orjson.loads(body)["masks"]), np.float32)

    with service.client() as client, ThreadPoolExecutor(4) as pool:
        remembered = {**FIELDS, "image_id": embedded(client, encoded(picture(50, 40, 666)))}
        expected = ask(client)
        at_work.clear()
        answers = [pool.submit(ask, client) for _ in range(4)]
        # While the encoder's first bands arrive, and the model is at work on the others.
        at_work.wait(60)
        assert kill_replicas("ResponseEncoder") == 1
        assert kill_replicas(f"Sam2Model:{DEMO}") == 1
        for answer in answers:
            # Not the same to the last digit: torch rounds differently in batches of different sizes.
            np.testing.assert_allclose(answer.result(), expected, atol=1e-3)
        # An embedding dies with its replica, and that is told honestly.
        parts = [(name, (None, text.encode())) for name, text in remembered.items()]
        by_id = client.post("/segment-anything-2", files=parts)
        assert by_id.status_code == 404, by_id.text[:500]
