"""Metrics, logs and traces of the running service, as those who operate it would read them."""

import json
import time
from typing import Any

import pytest

from deployments.telemetry import metrics
from harness.exported import scrape, scrape_until
from harness.images import encoded, picture
from tests.collector import Span
from tests.integration.conftest import DEMO, Service

POINT = {"point_coords": "[[10, 10]]", "point_labels": "[1]"}
SECRET = "a-file-name-that-is-nobody's-business.png"
ROUTE = "/segment-anything-2"


@pytest.fixture(scope="module")
def asked(service: Service) -> dict[str, Any]:
    """One request by upload, one by id, and one that is refused; their ids, and when they were sent."""
    with service.client() as client:
        image = encoded(picture(160, 120, seed=4711))
        traced = {"traceparent": f"00-{'5a' * 16}-{'b7' * 8}-01", "X-Request-Id": "observed-1"}
        upload = client.post(
            ROUTE, data={**POINT, "response_format": "rle"}, files={"image": (SECRET, image)}, headers=traced
        )
        assert upload.status_code == 200
        image_id = upload.headers["X-Image-Id"]
        by_id = client.post(ROUTE, files={name: (None, text) for name, text in {**POINT, "image_id": image_id}.items()})
        assert by_id.status_code == 200
        points = json.dumps([[1, 1]] * 2000)
        labels = json.dumps([1] * 2000)
        refused = client.post(ROUTE, data={"point_coords": points, "point_labels": labels}, files={"image": image})
        assert refused.status_code == 413
    return {"image_id": image_id, "timing": upload.headers["Server-Timing"]}


def test_requests_are_counted_by_route_model_format_and_status(service: Service, asked: dict[str, Any]) -> None:
    known = {"route": ROUTE, "model_id": DEMO}
    exported = scrape_until(
        service.metrics_url,
        lambda now: (
            now.total("ray_sam2_requests_total", **known, response_format="rle", status="200") >= 1
            and now.total("ray_sam2_rejected_total", reason="too_large") >= 1
        ),
    )
    assert exported.total("ray_sam2_requests_total", **known, response_format="rle", status="200") >= 1
    assert exported.total("ray_sam2_requests_total", **known, response_format="json", status="200") >= 1
    assert exported.total("ray_sam2_requests_total", route=ROUTE, status="413") >= 1
    assert exported.total("ray_sam2_rejected_total", reason="too_large") >= 1
    assert exported.total("ray_sam2_request_seconds_count", **known) >= 2
    for stage in ("parse", "queue", "embed", "decode", "encode", "send"):
        assert exported.total("ray_sam2_stage_seconds_count", stage=stage, model_id=DEMO) >= 2
    assert exported.total("ray_sam2_embedding_cache_misses_total", model_id=DEMO) >= 1
    assert exported.total("ray_sam2_embedding_cache_hits_total", model_id=DEMO) >= 1
    assert exported.total("ray_sam2_embedding_cache_bytes", model_id=DEMO) > 1e6
    assert exported.total("ray_sam2_batch_size_count", model_id=DEMO, stage="embed") >= 1
    assert exported.total("ray_sam2_model_load_seconds_count", model_id=DEMO) >= 1


def test_the_sum_of_batch_sizes_is_exact(service: Service, asked: dict[str, Any]) -> None:
    # Ray makes it of the middles of the buckets, which are whole numbers therefore.
    total = scrape(service.metrics_url).total("ray_sam2_batch_size_sum", model_id=DEMO)
    assert total >= 2
    assert total == int(total)
    assert metrics.BATCH_SIZES[:2] == [0.5, 1.5]


def log_lines(service: Service, deployment: str) -> list[dict[str, Any]]:
    """What the replicas of a deployment have logged."""
    files = (service.logs / "serve").glob(f"replica_*{deployment}*.log")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_request_is_one_line_of_the_log_with_its_ids_and_times(service: Service, asked: dict[str, Any]) -> None:
    deadline = time.monotonic() + 20
    found: list[dict[str, Any]] = []
    while not found and time.monotonic() < deadline:
        lines = log_lines(service, "RequestParser")
        # Whatever else is logged while a request is at work has its id too.
        found = [line for line in lines if line.get("request_id") == "observed-1" and "seconds" in line]
        time.sleep(0.2)
    [line] = found
    wanted = {"image_id": asked["image_id"], "model_id": DEMO, "status": 200, "response_format": "rle", "cache": "miss"}
    assert {name: line[name] for name in wanted} == wanted
    for stage in ("parse", "queue", "embed", "decode", "encode", "send"):
        assert line[f"{stage}_ms"] >= 0
    assert line["embed_ms"] > 1
    assert line["seconds"] * 1000 >= line["embed_ms"]


def test_nothing_of_the_image_and_no_token_is_logged(service: Service, asked: dict[str, Any]) -> None:
    with service.client(headers={"Authorization": "Bearer t0p-secret"}) as client:
        assert client.get("/version").is_success
    time.sleep(1)
    files = [file for file in service.logs.rglob("*") if file.is_file()]
    assert len(files) > 10
    for file in files:
        text = file.read_bytes()
        assert b"nobody's-business" not in text, file
        assert b"t0p-secret" not in text, file


def above(spans: dict[str, Span], inner: Span) -> list[str]:
    """The names of the spans around one, from the inside to the outside."""
    names = []
    while inner.parent_id in spans:
        inner = spans[inner.parent_id]
        names.append(inner.name)
    return names


def test_a_request_is_one_trace_through_parser_model_and_encoder(service: Service, asked: dict[str, Any]) -> None:
    # Each process sends its spans when it gets to it, and a span only when it has ended.
    deadline = time.monotonic() + 60
    while True:
        spans = {span.span_id: span for span in service.collector.trace("5a" * 16)}
        names = {span.name: span for span in spans.values()}
        around = above(spans, names["decode"]) if "decode" in names else []
        # The stages of the model are inside Serve's span of the call, and that inside the request's.
        complete = (
            {"parse", "decode image", "embed", "decode"} <= set(names)
            and any("ResponseEncoder encode_part" in name for name in names)
            and any(f"Sam2Model:{DEMO} segment" in name for name in around)
            and f"POST {ROUTE}" in around
        )
        if complete:
            break
        assert time.monotonic() < deadline, (sorted(names), around)
        time.sleep(0.5)
    # The client's own span is around it all.
    assert names[f"POST {ROUTE}"].parent_id == "b7" * 8
    assert names["embed"].attributes["height"] > 0
    assert SECRET not in str(spans)
