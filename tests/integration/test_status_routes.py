"""The routes beside segmentation, and the OpenAPI document."""

import re

import httpx

from tests.integration.conftest import DEMO, Service

FORM_FIELDS = {
    "image",
    "image_id",
    "video_id",
    "frame_index",
    "model_id",
    "point_coords",
    "point_labels",
    "box",
    "mask_input",
    "multimask_output",
    "return_logits",
    "normalize_coords",
    "response_format",
    "tolerance",
    "mask_index",
    "window",
    "bands",
    "page",
    "background",
    "label",
    "file_name",
    "coordinates",
}


def get(service: Service, path: str) -> httpx.Response:
    with service.client() as client:
        response = client.get(path)
    assert response.status_code == 200, response.text
    return response


def test_health_ready_and_version(service: Service) -> None:
    assert get(service, "/health").json() == {"status": "OK"}
    assert get(service, "/ready").json() == {"status": "READY", "model_id": DEMO}
    version = get(service, "/version").json()
    assert version["pipeline"] == "segment-anything-2"
    assert version["model_id"] == DEMO
    assert re.fullmatch(r"\d+\.\d+\.\d+", version["version"])


def test_models_are_listed_with_the_default_marked(service: Service) -> None:
    models = get(service, "/models").json()["models"]
    assert [model["model_id"] for model in models if model["default"]] == [DEMO]
    assert {model["state"] for model in models} <= {"asleep", "loading", "ready", "failed"}
    [default] = [model for model in models if model["default"]]
    assert (default["state"], default["encoder_backend"]) == ("ready", "torch")


def test_hardware_covers_every_node(service: Service) -> None:
    info = get(service, "/hardware/info").json()
    stats = get(service, "/hardware/stats").json()
    assert len(info["nodes"]) == len(stats["nodes"]) == 1
    assert info["nodes"][0]["memory_total"] > 2**30
    assert 1 <= info["nodes"][0]["usable_cores"] <= info["nodes"][0]["cpu_count"]
    assert 0 < info["nodes"][0]["memory_available"] < info["nodes"][0]["memory_limit"]
    assert info["nodes"][0]["memory_limit"] <= info["nodes"][0]["memory_total"]
    assert info["nodes"][0]["error"] == ""
    assert len(info["gpu_info"]) == len(stats["gpu_stats"]) == info["nodes"][0]["gpu_count"]


def test_every_answer_carries_one_request_id_and_keeps_the_clients(service: Service) -> None:
    with service.client() as client:
        given = client.get("/health", headers={"X-Request-Id": "my-id-1"})
        made = client.get("/nowhere")
    assert given.headers.get_list("x-request-id") == ["my-id-1"]
    assert len(made.headers.get_list("x-request-id")) == 1


def test_the_openapi_document_describes_the_contract(service: Service) -> None:
    document = get(service, "/openapi.json").json()
    operation = document["paths"]["/segment-anything-2"]["post"]
    assert operation["operationId"] == "genSegmentAnything2"
    assert set(operation["responses"]) == {"200", "400", "401", "404", "408", "413", "415", "422", "500", "503"}
    reference = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"]
    form = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert set(form["properties"]) == FORM_FIELDS
    # Either of `image` and `image_id`, which OpenAPI's `required` cannot say.
    assert "required" not in form
    assert operation["requestBody"]["required"]
    # Not "or null": for that Swagger's page shows a field for text.
    assert form["properties"]["image"]["type"] == "string"
    assert set(document["paths"]["/segment-anything-2/embed"]["post"]["responses"]) == {
        *("200", "400", "401", "408", "413", "415", "422", "500", "503")
    }
    assert all(field.get("description") for field in form["properties"].values())
    operations = [entry for path in document["paths"].values() for entry in path.values()]
    assert len({entry["operationId"] for entry in operations}) == len(operations)


def test_the_documentation_page_and_the_click_page_name_each_other(service: Service) -> None:
    assert "swagger" in get(service, "/docs").text.lower()
    # The description, which /docs shows, as Markdown: relative to /docs.
    assert "(./)" in get(service, "/openapi.json").json()["info"]["description"]
    assert 'href="docs"' in get(service, "/").text
