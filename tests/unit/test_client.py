"""The Python client against a made-up server that only notes its requests: which are uploads, which are repeats."""

import asyncio
import hashlib
import io
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from deployments import client as module
from deployments.client import TOOL_FORMATS, Client, ClientError, ImageFile
from deployments.messages.answer_format import TRAITS
from tests.either_client import Connect, asynchronous, either

IMAGE = b"a file"
IMAGE_ID = hashlib.sha256(IMAGE).hexdigest()


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


ANSWER = archive(masks=np.ones((3, 2, 2), np.bool_), scores=np.ones(3, np.float32))
NOT_CACHED = httpx.Response(404, json={"detail": {"msg": "image_id: upload it", "code": "image_not_cached"}})
BUSY = httpx.Response(503, json={"detail": {"msg": "overloaded"}}, headers={"Retry-After": "7"})


@dataclass
class Server:
    """Gives the outcomes one after the other, then answers; notes how each request names its image."""

    outcomes: list[httpx.Response | Exception] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        self.bodies.append(body)
        self.asked.append("upload" if IMAGE in body else "id" if IMAGE_ID.encode() in body else request.method)
        outcome = self.outcomes.pop(0) if self.outcomes else httpx.Response(200, content=ANSWER)
        if isinstance(outcome, Exception):
            raise outcome
        # A response belongs to one request: a new one each time.
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)


@either
async def test_an_image_is_uploaded_once(connect: Connect, pauses: list[float]) -> None:
    server = Server()
    client = connect(server)
    for _ in range(3):
        found = await client.segment(IMAGE, point_coords=[[1, 2]], point_labels=[1])
    assert server.asked == ["upload", "id", "id"]
    assert found.image_id == IMAGE_ID
    assert found.masks.shape == (3, 2, 2)
    assert found.logits is None
    await client.segment(IMAGE, box=[1, 2, 3, 4], model_id="another")
    assert server.asked[3:] == ["upload"]
    assert pauses == []


@either
async def test_an_embedded_image_is_prompted_by_its_id(connect: Connect) -> None:
    server = Server()
    client = connect(server)
    assert await client.embed(IMAGE) == IMAGE_ID
    await client.segment(IMAGE, box=[1, 2, 3, 4])
    assert server.asked == ["upload", "id"]


@either
async def test_an_image_that_the_service_forgot_is_uploaded_again(connect: Connect) -> None:
    server = Server()
    client = connect(server)
    await client.embed(IMAGE)
    server.outcomes = [NOT_CACHED]
    await client.segment(IMAGE, box=[1, 2, 3, 4])
    await client.segment(IMAGE, box=[1, 2, 3, 4])
    assert server.asked == ["upload", "id", "upload", "id"]


@either
async def test_an_image_that_the_client_made_it_forget_is_uploaded_again(connect: Connect) -> None:
    server = Server()
    client = connect(server)
    await client.embed(IMAGE)
    server.outcomes = [httpx.Response(200, json={"forgotten": True})]
    assert await client.forget(IMAGE)
    await client.segment(IMAGE, box=[1, 2, 3, 4])
    assert server.asked == ["upload", "DELETE", "upload"]


@either
async def test_a_call_with_crops_uploads_the_image(connect: Connect) -> None:
    everything = archive(
        masks=np.ones((1, 2, 2), np.bool_),
        predicted_iou=np.ones(1),
        stability_score=np.ones(1),
        point_coords=np.ones((1, 2)),
        crop_boxes=np.ones((1, 4)),
    )
    server = Server([httpx.Response(200, content=everything)] * 3)
    client = connect(server)
    assert (await client.auto(IMAGE, points_per_side=4)).masks.shape == (1, 2, 2)
    await client.auto(IMAGE, crop_n_layers=1)
    await client.auto(IMAGE)
    assert server.asked == ["upload", "upload", "id"]


@either
@pytest.mark.parametrize(
    ("outcome", "pause"),
    [
        (BUSY, 7),
        (httpx.Response(429, headers={"Retry-After": "3600"}), 30),
        (httpx.Response(502), 0.5),
        (httpx.Response(500, text="no replica"), 0.5),
        (httpx.Response(404, text="Path '/' not found. Ping http://.../-/routes for available routes."), 0.5),
        (httpx.ConnectError("refused"), 0.5),
        (httpx.RemoteProtocolError("closed in the middle"), 0.5),
    ],
    ids=[
        "busy",
        "a long pause",
        "a proxy",
        "a proxy without replicas",
        "a proxy without routes",
        "no listener",
        "died",
    ],
)
async def test_a_request_to_a_busy_or_unreachable_service_is_repeated(
    outcome: httpx.Response | Exception, pause: float, connect: Connect, pauses: list[float]
) -> None:
    server = Server([outcome])
    await connect(server).segment(IMAGE)
    assert server.asked == ["upload", "upload"]
    assert pauses == [pause]


@either
async def test_repeats_end_after_max_retries_and_at_the_time_out(connect: Connect, pauses: list[float]) -> None:
    server = Server([httpx.ConnectError("refused")] * 9)
    with pytest.raises(ClientError, match="ConnectError: refused") as error:
        await connect(server, max_retries=3).segment(IMAGE)
    assert error.value.status == 0
    assert len(server.asked) == 4
    # The next pause would outlast the time-out.
    with pytest.raises(ClientError, match="503: overloaded"):
        await connect(Server([BUSY]), timeout_s=5).segment(IMAGE)
    assert pauses == [0.5, 1, 2]


def test_pauses_grow_while_the_queue_stays_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    waits = [module._pause_s(httpx.Response(503, headers={"Retry-After": "1"}), attempt) for attempt in range(4)]
    assert waits == [1, 1.25, 2.5, 5]


@either
@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (httpx.Response(400, json={"detail": {"msg": "box: must be"}}), "400: box: must be"),
        (httpx.Response(500, json={"detail": {"msg": "internal error"}}), "500: internal error"),
        (
            httpx.Response(422, json={"detail": [{"type": "t", "loc": ["body", "image"], "msg": "Field required"}]}),
            "422: image: Field required",
        ),
        (httpx.Response(418, text="<html>teapot"), "418: <html>teapot"),
        (httpx.Response(301, headers={"Location": "https://elsewhere"}), "301: Moved Permanently"),
        (httpx.Response(404, json={"detail": "Not Found"}), '404: {"detail":"Not Found"}'),
        (httpx.Response(404, json=[1]), r"404: \[1\]"),
        (
            httpx.Response(503, json={"detail": {"msg": "too late", "code": "deadline_exceeded"}}),
            "503: too late",
        ),
        (NOT_CACHED, "404: image_id: upload it"),
    ],
    ids=[
        "bad prompt",
        "a bug",
        "missing",
        "a proxy",
        "moved",
        "fastapi",
        "a list",
        "too slow",
        "unknown even after an upload",
    ],
)
async def test_a_rejected_request_is_not_repeated(
    outcome: httpx.Response, message: str, connect: Connect, pauses: list[float]
) -> None:
    server = Server([outcome])
    with pytest.raises(ClientError, match=f"^{message}$") as error:
        await connect(server).segment(IMAGE)
    assert error.value.status == outcome.status_code
    assert len(server.asked) == 1
    assert pauses == []


@either
async def test_a_wrong_keyword_is_a_type_error(connect: Connect) -> None:
    server = Server()
    with pytest.raises(TypeError, match="unexpected keyword arguments: boxes, label"):
        await connect(server).segment(IMAGE, box=[1, 2, 3, 4], label=1, boxes=[])
    assert server.asked == []


@either
async def test_arrays_that_a_newer_service_adds_are_left_out(connect: Connect) -> None:
    logits = np.full((3, 256, 256), 0.5, np.float32)
    body = archive(masks=np.ones((3, 2, 2), np.bool_), scores=np.ones(3, np.float32), logits=logits, areas=np.ones(3))
    found = await connect(Server([httpx.Response(200, content=body)])).segment(IMAGE, return_logits=True)
    np.testing.assert_array_equal(found.logits, logits)
    assert not hasattr(found, "areas")


@either
async def test_an_answer_that_is_no_archive_is_an_error(connect: Connect) -> None:
    for outcome in (httpx.Response(200, text="<html>sign in"), httpx.Response(200, content=b"PK\x03\x04 cut")):
        with pytest.raises(ClientError, match="no numpy archive"):
            await connect(Server([outcome])).segment(IMAGE)


async def test_concurrent_calls_upload_a_forgotten_image_again() -> None:
    class Forgetful(Server):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            self.outcomes = [NOT_CACHED] if IMAGE_ID.encode() in request.read() else []
            return super().__call__(request)

    server = Forgetful()
    client = asynchronous(server)
    await client.embed(IMAGE)
    await asyncio.gather(*(client.segment(IMAGE, box=[1, 2, 3, 4]) for _ in range(3)))
    assert sorted(server.asked) == ["id"] * 3 + ["upload"] * 4


def test_a_call_and_its_repeats_share_one_deadline(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    now = [100.0]
    timeouts = []

    def answer(request: httpx.Request) -> httpx.Response:
        timeouts.append(request.extensions["timeout"])
        now[0] += 4
        return httpx.Response(502)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    client = Client("http://service", timeout_s=10, transport=httpx.MockTransport(answer))
    with pytest.raises(ClientError, match="502"):
        client.segment(IMAGE)
    assert [timeout["read"] for timeout in timeouts] == [10, 6, 2]
    assert [timeout["connect"] for timeout in timeouts] == [10, 6, 2]


def test_the_callers_headers_are_sent_beside_the_token() -> None:
    client = Client("http://service", token="secret", headers={"X-A": "b"})
    assert (client._http.headers["Authorization"], client._http.headers["X-A"]) == ("Bearer secret", "b")


def test_a_pil_image_is_upright_and_of_any_mode() -> None:
    image = Image.new("CMYK", (4, 2))
    image.getexif()[0x0112] = 6
    assert Image.open(io.BytesIO(ImageFile.of(image).data)).size == (2, 4)
    for mode in ("F", "I", "YCbCr", "LAB", "HSV", "1", "LA", "P"):
        assert Image.open(io.BytesIO(ImageFile.of(Image.new(mode, (4, 2))).data)).size == (4, 2)


def test_prompts_are_written_as_the_contract_says() -> None:
    server = Server()
    with Client("http://service", token="secret", model_id="m", transport=httpx.MockTransport(server)) as client:
        client.segment(
            IMAGE,
            point_coords=np.array([[1.5, 2]]),
            point_labels=np.array([1]),
            mask_input=np.zeros((1, 2, 2), np.float32),
            multimask_output=False,
            return_logits=True,
        )
        client.segment_as(IMAGE, "png", box=[1, 2, 3, 4], mask_index=2)
        assert client._http.headers["Authorization"] == "Bearer secret"
    for name, text in {
        "model_id": "m",
        "point_coords": "[[1.5, 2.0]]",
        "point_labels": "[1]",
        "mask_input": "[[[0.0, 0.0], [0.0, 0.0]]]",
        "multimask_output": "false",
        "return_logits": "true",
        "response_format": "npz",
    }.items():
        assert f'name="{name}"\r\n\r\n{text}\r\n'.encode() in server.bodies[0], name
    assert b'name="box"' not in server.bodies[0]
    assert b'name="mask_index"\r\n\r\n2\r\n' in server.bodies[1]


def test_a_tools_file_names_the_file_that_the_image_was_read_from(tmp_path: Path) -> None:
    server = Server()
    path = tmp_path / "pear.png"
    Image.new("RGB", (4, 4)).save(path)
    with Client("http://service", transport=httpx.MockTransport(server)) as client:
        client.segment_as(path, "coco", label="pear", point_coords=[[1, 2]], point_labels=[1])
        client.auto_as(client.image(path), "cvat", points_per_side=4)
        client.segment_as(path, "yolo", file_name="other.png")
        client.segment_as(path, "rle")
        client.segment_as(IMAGE, "coco")
    names = [re.findall(rb'name="file_name"\r\n\r\n(.*?)\r\n', body) for body in server.bodies]
    assert names == [[b"pear.png"], [b"pear.png"], [b"other.png"], [], []]
    assert b'name="label"\r\n\r\npear\r\n' in server.bodies[0]
    assert b'name="points_per_side"\r\n\r\n4\r\n' in server.bodies[1]


def test_a_file_whose_name_the_service_would_refuse_is_named_by_what_is_left(tmp_path: Path) -> None:
    server = Server()
    path = tmp_path / ("a" * 240 + "\n\udc80.png")
    Image.new("RGB", (4, 4)).save(path, "PNG")
    with Client("http://service", transport=httpx.MockTransport(server)) as client:
        client.segment_as(path, "coco")
    assert re.findall(rb'name="file_name"\r\n\r\n(.*?)\r\n', server.bodies[0]) == [b"a" * 196 + b".png"]


def test_the_client_knows_the_formats_that_name_the_file() -> None:
    assert {kind for kind, traits in TRAITS.items() if "file_name" in traits.options} == TOOL_FORMATS


def test_answers_on_a_map_always_have_the_file() -> None:
    server = Server()
    with Client("http://service", transport=httpx.MockTransport(server)) as client:
        for _ in range(2):
            client.segment_as(IMAGE, "polygons", coordinates="map")
            client.segment_as(IMAGE, "geotiff")
            client.auto_as(IMAGE, "geotiff")
        client.segment_as(IMAGE, "polygons", coordinates="pixels")
    assert [b'name="image"' in body for body in server.bodies] == [True] * 6 + [False]
    assert b'name="coordinates"\r\n\r\nmap\r\n' in server.bodies[0]


def test_files_arrays_and_pil_images_are_accepted(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "image.bmp")
    data = (tmp_path / "image.bmp").read_bytes()
    for source in (tmp_path / "image.bmp", str(tmp_path / "image.bmp"), data):
        assert ImageFile.of(source) == ImageFile(data, hashlib.sha256(data).hexdigest())
    for array in (pixels, Image.fromarray(pixels)):
        made = ImageFile.of(array)
        assert ImageFile.of(made) is made
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made.data))), pixels)
        assert made.image_id == hashlib.sha256(made.data).hexdigest()


def test_the_file_works_without_the_rest_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_bytes(Path(module.__file__).read_bytes())
    code = "import client; client.Client('http://x'); print('deployments' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]
