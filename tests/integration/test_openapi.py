"""The OpenAPI document is true: hundreds of requests made up from it get the statuses and shapes that it promises."""

import base64
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from harness.images import encoded, picture
from tests.integration.conftest import Service

IMAGES = [encoded(picture(40, 30)), encoded(picture(31, 47), "JPEG"), b"", b"not an image"]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

# The most examples: those whose requests the model has to think about get fewer.
EXAMPLES = {"/segment-anything-2": 100, "/segment-anything-2/auto": 30, "/segment-anything-2/embed": 25}
OTHERS = 12
AT_LEAST = 200

# Texts as a client would send them, mixed with what the document alone allows: any text.
TEXTS: dict[str, list[Any]] = {
    "image_id": ["", "", "", None, None, None],
    "multimask_output": ["", "true", "false"],
    "return_logits": ["", None, None],
    "normalize_coords": ["", "true"],
    "tolerance": ["", None, None, "2"],
    "mask_index": ["", None, None, "1"],
    "points_per_side": ["2", "3", "3", "20"],
    "crop_n_layers": ["", "", "1"],
    "crop_n_points_downscale_factor": ["", "1"],
    "pred_iou_thresh": ["0", "0.5"],
    "point_coords": ["[[10,10]]", "[[[1,1]],[[20,9]]]", "[]", "[[1,2"],
    "point_labels": ["[1]", "[[1],[0]]", "[7]"],
    "box": ["[1,2,30,20]", "[[1,2,30,20],[0,0,9,9]]", "[9,9,1,1]"],
    "model_id": ["", "", "sam2-demo", "sam2-demo"],
    "mask_input": ["", "", "null"],
    "window": ["", "auto", "full", "10,200"],
    "bands": ["", "", "1", "1,2,3"],
    "page": ["", "", "0"],
    "background": ["", "white", "#102030"],
    "coordinates": ["", "", "pixel"],
    "label": ["", "thing"],
    "file_name": ["", "picture.png"],
    "video_id": ["", "", "", None, None, None],
    "frame_index": ["", "", "", None, None, None],
}
# What the document cannot say: without it, a picture is asked about at a thousand points.
FEW_POINTS = {"points_per_side": "2"}
mostly = st.sampled_from([True, True, True, False])


def form(body: dict[str, Any], few: dict[str, str], draw: Callable[[Any], Any]) -> list[Any]:
    """A generated body as multipart parts: half of its texts sensible ones, and mostly an image that is one."""
    parts: list[Any] = []
    # The document cannot say that there must be one if there is no image_id.
    image = {"image": None} if draw(mostly) else {}
    for name, value in (few | body | image).items():
        text = draw(st.sampled_from([*TEXTS.get(name, []), value])) if name in TEXTS else value
        if name == "image":
            parts.append((name, ("image", draw(st.sampled_from(IMAGES)))))
        elif text is not None:
            written = json.dumps(text) if not isinstance(text, str) else text
            parts.append((name, (None, written.encode(errors="replace"))))
    return parts or [("nothing", (None, b""))]


def in_json(body: dict[str, Any], few: dict[str, str], draw: Callable[[Any], Any]) -> dict[str, Any]:
    """The same as JSON, where values may also stay what the document says."""
    document = {name: draw(st.sampled_from([*TEXTS.get(name, []), value])) for name, value in (few | body).items()}
    if draw(mostly):
        document["image"] = base64.b64encode(draw(st.sampled_from(IMAGES))).decode()
    return document


@pytest.mark.timeout(400)
def test_requests_made_from_the_document_get_what_it_promises(service: Service) -> None:
    schema: Any = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    statuses: Counter[tuple[str, int]] = Counter()
    client = service.client()
    for result in schema.get_all_operations():
        operation: Any = result.ok()
        examples = EXAMPLES.get(operation.path, OTHERS)

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), data=st.data())
        def exchange(case: Any, data: st.DataObject) -> None:
            if isinstance(case.body, dict):
                few = FEW_POINTS if case.operation.path.endswith("/auto") and data.draw(mostly) else {}
                if case.media_type == "application/json":
                    content: Any = {"json": in_json(case.body, few, data.draw)}
                else:
                    content = {"files": form(case.body, few, data.draw)}
                request = client.build_request("POST", case.formatted_path, **content)
                # Schemathesis looks at it too.
                request.read()
                response = client.send(request)
            else:
                response = case.call(base_url=service.url, timeout=120)
            statuses[case.operation.path, response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        exchange()
    assert statuses.total() >= AT_LEAST
    # 413 mostly too, but chance decides.
    assert {200, 400, 422} <= {status for _, status in statuses}
    assert not any(status == 500 for _, status in statuses)
    for path in EXAMPLES:
        assert statuses[path, 200], statuses
