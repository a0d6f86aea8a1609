"""The route answers as the contract says."""

import json

import numpy as np

from harness.images import encoded, picture
from tests.integration.conftest import Service


def test_the_answer_is_three_strings_that_hold_json(service: Service) -> None:
    fields = {"point_coords": "[[120,100],[120,50]]", "point_labels": "[1,0]"}
    with service.client() as client:
        response = client.post("/segment-anything-2", data=fields, files={"image": encoded(picture(200, 150))})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert list(answer) == ["masks", "scores", "logits"]
    masks, scores, logits = (np.array(json.loads(answer[key])) for key in answer)
    assert masks.shape == (3, 150, 200)
    assert scores.shape == (3,)
    assert logits.shape == (3, 256, 256)
    assert (np.diff(scores) <= 0).all()
    assert abs(logits).max() <= 32
