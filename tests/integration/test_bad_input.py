"""Whatever a client sends, it gets the right status and a message that names the fault, and the service lives on."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from deployments.errors import InvalidImage, InvalidRequest, TooLarge, UnknownModel
from deployments.messages.prompt import Prompt
from harness.images import encoded
from tests.bad_images import NOT_IMAGES, TOO_LARGE
from tests.forms import (
    BOUNDARY,
    GOOD_BODY,
    IMAGE,
    MULTIPART,
    POINT,
    ROUTE,
    Fields,
    Part,
    body,
    parts,
    text_parts,
    zeros,
)
from tests.integration.conftest import DEMO, Service

WITHIN_S = 20
"""Generous: bad input is answered in milliseconds, but the tests may share the machine."""


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def replicas() -> dict[str, int]:
    """The process of every replica that is awake."""
    import ray

    actors = ray._private.state.actors(actor_state_name="ALIVE").values()
    return {
        actor["Name"]: actor["Pid"]
        for actor in actors
        if actor["Name"].startswith("SERVE_REPLICA::segment-anything-2#")
    }


@pytest.fixture(scope="module", autouse=True)
def replicas_before(service: Service) -> dict[str, int]:
    return replicas()


def check(response: httpx.Response, status: int, named: str) -> None:
    """The status, the error's shape, and that it names the field."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    detail = response.json()["detail"]
    if status == 422:
        assert [fault["loc"] for fault in detail] == [["body", named]]
        assert all(fault["msg"] for fault in detail)
    else:
        assert list(detail) == ["msg"]
        assert named in detail["msg"]
    assert len(response.content) < 1500, "an error is not the place to send megabytes back"
    assert response.elapsed.total_seconds() < WITHIN_S


# ---- the JSON of each prompt field

ARRAY_FIELDS = ("point_coords", "point_labels", "box", "mask_input")

# One of each kind of fault and each field; tests/unit/test_form.py and test_messages.py have them all.
NOT_ARRAYS: dict[str, tuple[str, str | bytes]] = {
    "unclosed": ("point_coords", "[[1,2]"),
    "unclosed and deep": ("mask_input", "[" * 50_000),
    "deeper than numpy": ("point_coords", "[" * 70 + "1" + "]" * 70),
    "NaN": ("box", "[[NaN,1]]"),
    "beyond float32": ("box", "[[1e39,1]]"),
    "an object": ("point_labels", '{"x":1,"y":2}'),
    "strings inside": ("mask_input", '[["1","2"]]'),
    "ragged": ("point_coords", "[[1,2],[3]]"),
    "invalid UTF-8": ("point_coords", b"[[1,2]]\xff\xfe"),
    "a zero byte": ("point_labels", b"[[1,2]\x00]"),
    "a byte order mark": ("box", b"\xef\xbb\xbf[[1,2]]"),
}


@pytest.mark.parametrize(("field", "text"), NOT_ARRAYS.values(), ids=NOT_ARRAYS)
def test_a_field_that_is_no_array_of_numbers_is_refused(field: str, text: str | bytes, client: httpx.Client) -> None:
    check(client.post(ROUTE, files=parts({field: text})), 400, f"{field}: ")


BAD_PROMPTS: dict[str, tuple[int, str, Fields]] = {
    "labels without coordinates": (400, "point_coords: ", {"point_labels": "[1]"}),
    "coordinates with null labels": (400, "point_labels: ", {"point_coords": "[[10,10]]", "point_labels": "null"}),
    "object axis on coordinates only": (400, "point_labels: ", {**POINT, "point_coords": "[[[1,2]]]"}),
    "label 4": (400, "point_labels: ", {**POINT, "point_labels": "[4]"}),
    "box of 3": (400, "box: ", {"box": "[1,2,3]"}),
    "box reversed in x": (400, "box: ", {"box": "[20,2,10,20]"}),
    "3 boxes for 2 objects' points": (
        400,
        "objects differs",
        {"point_coords": "[[[1,2]],[[3,4]]]", "point_labels": "[[1],[1]]", "box": "[[1,2,3,4],[1,2,3,4],[1,2,3,4]]"},
    ),
    "2 masks for 3 boxes": (
        400,
        "mask_input: ",
        {"box": "[[1,2,3,4],[1,2,3,4],[1,2,3,4]]", "mask_input": zeros(2, 1, 256, 256)},
    ),
    "mask of 128×128": (400, "mask_input: ", {"mask_input": zeros(1, 128, 128)}),
    "unknown model": (400, "model_id: ", {"model_id": "facebook/sam3"}),
    "model of another case": (400, "model_id: ", {"model_id": "SAM2-Demo"}),
    "model with a space": (400, "model_id: ", {"model_id": "sam2-demo "}),
    "model as a path": (400, "model_id: ", {"model_id": "../../../../etc/passwd"}),
    "model of 100,000 characters": (400, "model_id: ", {"model_id": "m" * 100_000}),
    "model as emoji": (400, "model_id: ", {"model_id": "🦙" * 300}),
    "model of invalid UTF-8": (400, "model_id: ", {"model_id": b"\xff\xfe\x80"}),
    "model with a zero byte": (400, "model_id: ", {"model_id": b"sam2-demo\x00"}),
    "multimask_output maybe": (422, "multimask_output", {"multimask_output": "maybe"}),
    "return_logits 2": (422, "return_logits", {"return_logits": "2"}),
    "return_logits as array": (422, "return_logits", {"return_logits": "[true]"}),
    "normalize_coords none": (422, "normalize_coords", {"normalize_coords": "none"}),
    "normalize_coords of a megabyte": (422, "normalize_coords", {"normalize_coords": "x" * 2**20}),
    "10,001 points": (
        413,
        "point_coords: ",
        {"point_coords": zeros(10_001, 2), "point_labels": zeros(10_001)},
    ),
    "10,100 points of 101 objects": (
        413,
        "point_coords: ",
        {"point_coords": zeros(101, 100, 2), "point_labels": zeros(101, 100)},
    ),
    "200,000 points": (413, "point_coords: ", {"point_coords": zeros(200_000, 2), "point_labels": zeros(200_000)}),
    "257 boxes": (413, "objects", {"box": zeros(257, 4)}),
    "257 objects' points": (413, "objects", {"point_coords": zeros(257, 1, 2), "point_labels": zeros(257, 1)}),
    "257 masks, which is more text than a field may have": (
        413,
        "mask_input: ",
        {"mask_input": zeros(257, 1, 256, 256)},
    ),
}


@pytest.mark.parametrize(("status", "named", "fields"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_a_bad_prompt_is_refused(status: int, named: str, fields: Fields, client: httpx.Client) -> None:
    check(client.post(ROUTE, files=parts(fields)), status, named)


# ---- the image


@pytest.mark.parametrize("make", NOT_IMAGES.values(), ids=NOT_IMAGES)
def test_what_is_no_whole_image_is_refused(make: Callable[[], bytes], client: httpx.Client) -> None:
    check(client.post(ROUTE, files=parts(POINT, make())), 400, "image: ")


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=TOO_LARGE)
def test_an_image_that_is_too_large_is_refused(make: Callable[[], bytes], client: httpx.Client) -> None:
    check(client.post(ROUTE, files=parts(POINT, make())), 413, "image: ")


@pytest.mark.parametrize(
    "filename",
    [
        "снимок экрана 📷.png",
        "x" * 4_000 + ".png",
        "../../../../etc/passwd",
        "C:\\photos\\cat.png",
        'quoted ".png',
        "two\r\nlines: .png",
        "zero\x00.png",
        "%00%2e%2e%2f.png",
        " ",
    ],
    ids=ascii,
)
def test_a_bad_image_is_refused_whatever_its_file_is_called(filename: str, client: httpx.Client) -> None:
    check(client.post(ROUTE, files=parts(POINT, b"not an image", filename)), 400, "image: ")


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ((1000, 800), {"box": "[" + ",".join(["[1,1,9,9]"] * 42) + "]"}),
        ((1000, 800), {"box": "[" + ",".join(["[1,1,9,9]"] * 126) + "]", "multimask_output": "false"}),
        ((6000, 6000), {}),
    ],
    ids=["42 objects of three masks", "126 objects of one mask", "36 megapixels"],
)
def test_an_answer_that_would_be_too_large_is_refused(
    size: tuple[int, int], fields: Fields, client: httpx.Client
) -> None:
    from PIL import Image

    response = client.post(ROUTE, files=parts(fields, encoded(Image.new("L", size))))
    check(response, 413, "image: ")
    assert "numbers" in response.json()["detail"]["msg"]


# ---- the form

BAD_FORMS: dict[str, tuple[int, str, list[Part]]] = {
    "no image": (422, "image", text_parts(POINT)),
    "image as text": (422, "image", [*text_parts({"image": "cat.png"}), *text_parts(POINT)]),
    "image under another name": (422, "image", [("file", ("image.png", IMAGE))]),
    **{
        f"{field} as a file": (422, field, [*parts({}), (field, ("field.json", b"[[1,2]]"))])
        for field in (*ARRAY_FIELDS, "model_id", "multimask_output", "return_logits", "normalize_coords")
    },
    **{
        f"{field} twice": (400, f"{field}: ", [*parts({field: text}), *text_parts({field: text})])
        for field, text in {
            **POINT,
            "box": "[1,2,3,4]",
            "mask_input": "null",
            "model_id": DEMO,
            "multimask_output": "true",
            "return_logits": "true",
            "normalize_coords": "true",
        }.items()
    },
    "brackets": (400, "point_coords[0][]: ", [*parts({}), *text_parts({"point_coords[0][]": "10"})]),
    "a misspelt prompt": (400, "points: is not a field; did you mean point_coords?", parts({"points": "[[1,2]]"})),
    "pixels as fractions": (400, "point_coords: has 10", parts({**POINT, "normalize_coords": "false"})),
    "image twice": (400, "image: ", [*parts({}), *parts({})]),
    "image as file and as text": (400, "image: ", [*parts({}), *text_parts({"image": "cat.png"})]),
    "100 unknown fields": (400, "body: ", [*parts({}), *text_parts({f"field{index}": "1" for index in range(100)})]),
    "100 unknown files": (400, "body: ", [*parts({}), *((f"f{index}", ("f.png", b"1")) for index in range(100))]),
}


def test_a_field_in_the_url_is_refused(client: httpx.Client) -> None:
    check(client.post(f"{ROUTE}?response_format=rle", files=parts(POINT)), 400, "response_format: is in the URL")


@pytest.mark.parametrize(("status", "named", "form"), BAD_FORMS.values(), ids=BAD_FORMS)
def test_a_bad_form_is_refused(status: int, named: str, form: list[Part], client: httpx.Client) -> None:
    check(client.post(ROUTE, files=form), status, named)


# ---- the body

BAD_BODIES: dict[str, tuple[int, str, str | None, bytes]] = {
    "json without an image in it": (400, "image: ", "application/json", b'{"image":"aGVsbG8="}'),
    "json that is none": (400, "body: is not valid JSON: ", "application/json", b"{'image': 1}"),
    "json with a misspelt name": (400, "points: ", "application/json", b'{"points":[[1,2]]}'),
    "urlencoded without an image": (422, "image", "application/x-www-form-urlencoded", b"point_coords=%5B%5D"),
    "urlencoded with a bracketed name": (
        400,
        "point_coords[0][]: ",
        "application/x-www-form-urlencoded",
        b"point_coords%5B0%5D%5B%5D=1",
    ),
    "plain text": (415, "Content-Type: ", "text/plain", b"hello"),
    "an image": (415, "Content-Type: ", "image/png", IMAGE),
    "multipart of another kind": (415, "Content-Type: ", f"multipart/mixed; boundary={BOUNDARY}", GOOD_BODY),
    "no content type": (415, "Content-Type: ", None, GOOD_BODY),
    "an empty content type": (415, "Content-Type: ", "", GOOD_BODY),
    "nothing at all": (415, "Content-Type: ", None, b""),
    "no boundary": (400, "body: ", "multipart/form-data", GOOD_BODY),
    "an empty boundary": (400, "body: ", "multipart/form-data; boundary=", GOOD_BODY),
    "another boundary": (400, "body: ", "multipart/form-data; boundary=other", GOOD_BODY),
    "a boundary of 1000 characters": (400, "body: ", f"multipart/form-data; boundary={'x' * 1000}", GOOD_BODY),
    "an empty body": (400, "body: ", MULTIPART, b""),
    "garbage": (400, "body: ", MULTIPART, b"\x00\xff" * 500),
    "json that claims to be a form": (400, "body: ", MULTIPART, b'{"image":"aGVsbG8="}'),
    "cut off within the image": (400, "body: ", MULTIPART, GOOD_BODY[:500]),
    "cut off within a header": (400, "body: ", MULTIPART, GOOD_BODY[:40]),
    "cut off before the closing boundary": (400, "body: ", MULTIPART, body(parts(POINT), b"")),
    "cut off within the closing boundary": (400, "body: ", MULTIPART, body(parts(POINT), b"--front")),
    "a part without name": (400, "body: ", MULTIPART, GOOD_BODY.replace(b'name="image"; ', b"")),
    "a part without disposition": (400, "body: ", MULTIPART, GOOD_BODY.replace(b"Content-Disp", b"Content-Pos", 1)),
    "a part without headers": (400, "body: ", MULTIPART, b"--frontier\r\n\r\nhello\r\n--frontier--\r\n"),
    "a header of binary": (400, "body: ", MULTIPART, GOOD_BODY.replace(b"Content-Disp", b"\x00\xff\x01", 1)),
    "a file name of 20,000 characters": (400, "body: ", MULTIPART, body(parts(POINT, filename="x" * 20_000))),
    "a charset that decodes nothing": (400, "Content-Type: ", f"{MULTIPART}; charset=undefined", GOOD_BODY),
    "a charset that is for host names": (400, "Content-Type: ", f"{MULTIPART}; charset=punycode", GOOD_BODY),
}


@pytest.mark.parametrize(("status", "named", "content_type", "content"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_bad_body_is_refused(
    status: int, named: str, content_type: str | None, content: bytes, client: httpx.Client
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    check(client.post(ROUTE, content=content, headers=headers), status, named)


@pytest.mark.parametrize(
    ("announced", "named"), [(True, "body: "), (False, "mask_input: ")], ids=["announced", "chunked"]
)
def test_a_field_beyond_the_limit_is_refused(announced: bool, named: str, client: httpx.Client) -> None:
    check(post_large(client, [("mask_input", (None, MEBIBYTE * 41))], announced), 413, named)


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_body_beyond_the_limit_is_refused(announced: bool, client: httpx.Client) -> None:
    form: list[Part] = [(f"field{index}", (None, MEBIBYTE)) for index in range(41)]
    check(post_large(client, form, announced), 413, "body: ")


MEBIBYTE = bytes(2**20)


def post_large(client: httpx.Client, form: list[Part], announced: bool) -> httpx.Response:
    content = body(form)
    chunks = (content[start : start + 2**18] for start in range(0, len(content), 2**18))
    return client.post(ROUTE, content=content if announced else chunks, headers={"Content-Type": MULTIPART})


def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(service: Service) -> None:
    """A client that waits for an answer to its headers need not send the rest."""
    url = urlsplit(service.url)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=WITHIN_S)
    connection.putrequest("POST", ROUTE)
    connection.putheader("Content-Type", MULTIPART)
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert "body: " in json.load(response)["detail"]["msg"]
    connection.close()


# ---- paths and methods


@pytest.mark.parametrize("path", [ROUTE, f"{ROUTE}/"])
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_the_route_takes_only_post(method: str, path: str, client: httpx.Client) -> None:
    response = client.request(method, path)
    check(response, 405, "Method Not Allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path", ["/segment-anything", "/segment-anything-2/x", "/segment-anything-2/x/", "/../etc", "/é"]
)
def test_an_unknown_path_is_not_found(path: str, client: httpx.Client) -> None:
    check(client.post(path, files=parts(POINT)), 404, "Not Found")


# ---- the handle

BAD_CALLS: dict[str, tuple[type[InvalidRequest | TooLarge], str, Any, str]] = {
    "text as image": (InvalidImage, "image: ", b"not an image", ""),
    "a path as image": (InvalidImage, "image: ", "cat.png", ""),
    "no image": (InvalidImage, "image: ", None, ""),
    "an array of one axis": (InvalidImage, "image: ", np.zeros(8, np.uint8), ""),
    "an array of complex numbers": (InvalidImage, "image: ", np.zeros((8, 8, 3), np.complex64), ""),
    "an array of no pixels": (InvalidImage, "image: ", np.zeros((0, 8, 3), np.uint8), ""),
    "an array of 64,001,000 pixels": (TooLarge, "image: ", np.zeros((64_001, 1000, 3), np.uint8), ""),
    "an unknown model": (UnknownModel, "model_id: ", IMAGE, "facebook/sam3"),
}


@pytest.mark.parametrize(("error", "named", "image", "model_id"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_handle_call_raises_the_services_own_error(
    error: type[InvalidRequest | TooLarge], named: str, image: Any, model_id: str, service: Service
) -> None:
    from ray import serve

    handle: Any = serve.get_app_handle("segment-anything-2")
    with pytest.raises(error) as raised:
        handle.segment.remote(image, Prompt(), model_id=model_id).result(timeout_s=WITHIN_S)
    cause: Any = raised.value
    assert cause.cause.message.startswith(named)


# ---- clients that leave


@pytest.fixture(scope="module")
def plain(client: httpx.Client) -> bytes:
    response = client.post(ROUTE, files=parts(POINT))
    assert response.status_code == 200, response.text[:500]
    return response.content


def test_a_client_that_leaves_within_its_upload_harms_no_one(
    service: Service, plain: bytes, client: httpx.Client
) -> None:
    url = urlsplit(service.url)
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: {MULTIPART}\r\nContent-Length: 100000\r\n\r\n"
    for sent in (b"", GOOD_BODY[:20], GOOD_BODY[:600]):
        with socket.create_connection((str(url.hostname), url.port), timeout=WITHIN_S) as connection:
            connection.sendall(head.encode() + sent)
    assert client.post(ROUTE, files=parts(POINT)).content == plain


def test_afterwards_the_same_replicas_still_answer(
    replicas_before: dict[str, int], plain: bytes, client: httpx.Client
) -> None:
    from ray import serve

    assert client.post(ROUTE, files=parts(POINT)).content == plain
    # A replica that had died would be replaced within seconds.
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        assert replicas_before.items() <= replicas().items()
        time.sleep(0.5)
    assert len(replicas_before) >= 3
    assert serve.status().applications["segment-anything-2"].status == "RUNNING"
