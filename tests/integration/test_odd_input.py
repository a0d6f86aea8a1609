"""Odd, but good: an unusual form of a request gets the plain answer, an unusual prompt an answer of the right shape."""

import base64
import gzip
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.forms import BOUNDARY, GOOD_BODY, IMAGE, MULTIPART, POINT, ROUTE, Fields, body, parts, zeros
from tests.integration.conftest import DEMO, Service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def plain(client: httpx.Client) -> bytes:
    response = client.post(ROUTE, files=parts(POINT))
    assert response.status_code == 200, response.text[:500]
    return response.content


def raw(client: httpx.Client, content: bytes, content_type: str = MULTIPART, **headers: str) -> httpx.Response:
    return client.post(ROUTE, content=content, headers={"Content-Type": content_type, **headers})


def embedded(client: httpx.Client) -> str:
    return str(client.post(f"{ROUTE}/embed", files={"image": IMAGE}).json()["image_id"])


SAME_AS_PLAIN: dict[str, Callable[[httpx.Client], httpx.Response]] = {
    "a unicode file name": lambda client: client.post(ROUTE, files=parts(POINT, filename="снимок 📷.png")),
    "a file name of another format": lambda client: client.post(ROUTE, files=parts(POINT, filename="image.pdf")),
    "no file name to speak of": lambda client: raw(client, body(parts(POINT, filename=""))),
    "a trailing slash": lambda client: client.post(f"{ROUTE}/", files=parts(POINT)),
    "a query": lambda client: client.post(f"{ROUTE}?utm_source=docs", files=parts(POINT)),
    # With the host: httpx takes a name behind two slashes for one.
    "slashes too many": lambda client: client.post(client.base_url.copy_with(path=f"/{ROUTE}//"), files=parts(POINT)),
    "urlencoded": lambda client: client.post(ROUTE, data={**POINT, "image_id": embedded(client)}),
    "JSON": lambda client: client.post(ROUTE, json={**POINT, "image": base64.b64encode(IMAGE).decode()}),
    "JSON with arrays": lambda client: client.post(
        ROUTE, json={"point_coords": [[10, 10]], "point_labels": [1], "box": None, "image_id": embedded(client)}
    ),
    "packed": lambda client: raw(client, gzip.compress(GOOD_BODY), **{"Content-Encoding": "gzip"}),
    "padding, preamble, folded headers": lambda client: raw(
        client,
        b"A form.\r\n" + GOOD_BODY.replace(b"--frontier\r\n", b"--frontier \t\r\n").replace(b"; name", b";\r\n name"),
    ),
    "a large cookie": lambda client: raw(client, GOOD_BODY, Cookie="session=" + "c" * 20_000),
    "filename* alone": lambda client: raw(client, GOOD_BODY.replace(b'filename="', b"filename*=\"UTF-8''")),
    "an empty file beside an id": lambda client: raw(
        client, body(parts({**POINT, "image_id": embedded(client)}, image=b""))
    ),
    "the image last": lambda client: client.post(ROUTE, files=parts(POINT)[::-1]),
    "the image as text/html": lambda client: client.post(
        ROUTE, files={"image": ("a.html", IMAGE, "text/html")}, data=dict(POINT)
    ),
    "safety_check, as Livepeer's clients send": lambda client: client.post(
        ROUTE, files=parts({**POINT, "safety_check": "true"})
    ),
    "an unknown file": lambda client: client.post(ROUTE, files=[*parts(POINT), ("extra", ("x.bin", b"x"))]),
    "empty optional fields": lambda client: client.post(
        ROUTE,
        files=parts(
            {
                **POINT,
                "model_id": "",
                "box": "",
                "mask_input": "  ",
                "multimask_output": "",
                "return_logits": "",
                "normalize_coords": "",
            }
        ),
    ),
    "null fields": lambda client: client.post(ROUTE, files=parts({**POINT, "box": "null", "mask_input": " null "})),
    "the model named": lambda client: client.post(ROUTE, files=parts({**POINT, "model_id": DEMO})),
    "spaces in the JSON": lambda client: client.post(
        ROUTE, files=parts({**POINT, "point_coords": " [ [10 ,\n10] ]\t"})
    ),
    "floats for whole numbers": lambda client: client.post(
        ROUTE, files=parts({"point_coords": "[[1e1,10.0]]", "point_labels": "[1.0]"})
    ),
    "a content type in capitals": lambda client: raw(client, GOOD_BODY, f"Multipart/Form-Data; BOUNDARY={BOUNDARY}"),
    "a quoted boundary": lambda client: raw(client, GOOD_BODY, f'multipart/form-data; boundary="{BOUNDARY}"'),
    "a preamble and an epilogue": lambda client: raw(client, GOOD_BODY + b"and they lived happily ever after"),
    "charset=utf-8": lambda client: raw(client, GOOD_BODY, f"{MULTIPART}; charset=utf-8"),
    "an unknown charset": lambda client: raw(client, GOOD_BODY, f"{MULTIPART}; charset=klingon"),
    "a request id of 10,000 characters": lambda client: raw(client, GOOD_BODY, **{"X-Request-Id": "r" * 10_000}),
    **{
        f"multimask_output={text}": lambda client, text=text: client.post(  # type: ignore[misc]
            ROUTE, files=parts({**POINT, "multimask_output": text, "normalize_coords": text})
        )
        for text in ("true", "True", "TRUE", "1", "on", "yes", "t", "y")
    },
}


@pytest.mark.parametrize("send", SAME_AS_PLAIN.values(), ids=SAME_AS_PLAIN)
def test_an_odd_form_of_a_good_request_gets_the_plain_answer(
    send: Callable[[httpx.Client], httpx.Response], plain: bytes, client: httpx.Client
) -> None:
    response = send(client)
    assert response.status_code == 200, response.text[:500]
    assert response.content == plain


@pytest.mark.parametrize("text", ["false", "False", "FALSE", "0", "off", "no", "f", "n"])
def test_every_form_of_false_is_false(text: str, client: httpx.Client) -> None:
    response = client.post(ROUTE, files=parts({**POINT, "multimask_output": text, "return_logits": text}))
    assert response.status_code == 200, response.text[:500]
    masks = np.array(json.loads(response.json()["masks"]))
    assert masks.shape == (1, 30, 40)
    assert set(np.unique(masks)) <= {0, 1}


UNUSUAL: dict[str, tuple[tuple[int, ...], Fields]] = {
    "no prompt": ((3, 30, 40), {}),
    "a point outside of the image": ((3, 30, 40), {**POINT, "point_coords": "[[-5,-1000]]"}),
    "a point far away": ((3, 30, 40), {**POINT, "point_coords": "[[1e9,1e9]]"}),
    "a padding point": ((3, 30, 40), {**POINT, "point_labels": "[-1]"}),
    "a box as two labelled corners": (
        (3, 30, 40),
        {"point_coords": "[[5,5],[20,20]]", "point_labels": "[2,3]"},
    ),
    "a box without area": ((3, 30, 40), {"box": "[7,7,7,7]"}),
    "a box around more than the image": ((3, 30, 40), {"box": "[-100,-100,1000,1000]"}),
    "one object with its axis": ((1, 3, 30, 40), {"box": "[[1,2,30,20]]"}),
    "a mask of zeros": ((3, 30, 40), {"mask_input": zeros(1, 256, 256)}),
    "an empty string for points": ((3, 30, 40), {"point_coords": "", "point_labels": ""}),
    "500 points": ((3, 30, 40), {"point_coords": zeros(500, 2), "point_labels": zeros(500)}),
}


@pytest.mark.parametrize(("shape", "fields"), UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_prompt_is_answered(shape: tuple[int, ...], fields: Fields, client: httpx.Client) -> None:
    response = client.post(ROUTE, files=parts(fields))
    assert response.status_code == 200, response.text[:500]
    masks, scores, logits = (np.array(json.loads(text)) for text in response.json().values())
    assert masks.shape == shape
    assert np.isfinite(masks).all()
    assert scores.shape == shape[:-2]
    assert logits.shape == (*shape[:-2], 256, 256)


def test_a_client_that_expects_100_continue_is_told_to(service: Service, plain: bytes) -> None:
    """As curl does before it sends more than a megabyte."""
    url = urlsplit(service.url)
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: {MULTIPART}\r\n"
        f"Content-Length: {len(GOOD_BODY)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection((str(url.hostname), url.port), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(GOOD_BODY)
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 200
        assert response.read() == plain


def exchanged(url: str, request: bytes) -> bytes:
    """All that the server sends, until it closes the connection."""
    parts = urlsplit(url)
    with socket.create_connection((str(parts.hostname), parts.port), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


@pytest.mark.parametrize("proxy", ["url", "fallback_url"])
def test_a_body_beside_an_upgrade_to_http2_is_kept(proxy: str, service: Service, plain: bytes) -> None:
    """As Java's HttpClient sends it, through HAProxy and through Serve's own proxy."""
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nHost: s\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        f"HTTP2-Settings: AAEAAEAAAAIAAAABAAQBAAAAAAUAAEAA\r\nContent-Type: {MULTIPART}\r\n"
        f"Content-Length: {len(GOOD_BODY)}\r\n\r\n"
    )
    closing = b"GET /health HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"
    answer = exchanged(getattr(service, proxy), head.encode() + GOOD_BODY + closing)
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:1000]
    assert plain[:1000] in answer


@pytest.mark.parametrize("proxy", ["url", "fallback_url"])
def test_http_1_0_gets_no_chunks(proxy: str, service: Service, plain: bytes) -> None:
    head = f"POST {ROUTE} HTTP/1.0\r\nContent-Type: {MULTIPART}\r\nContent-Length: {len(GOOD_BODY)}\r\n\r\n"
    answer = exchanged(getattr(service, proxy), head.encode() + GOOD_BODY)
    headers, _, content = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in headers.lower()
    assert content == plain


@pytest.mark.parametrize("path", ["/", "/health", "/health/", "//health", "/version", "/docs", "/openapi.json"])
def test_head_is_get_without_a_body(path: str, service: Service, client: httpx.Client) -> None:
    response, expected = (client.request(method, f"{service.url}{path}") for method in ("HEAD", "GET"))
    assert (response.status_code, response.content) == (200, b"")
    own = {"date", "x-request-id"}
    headers = [{name: text for name, text in one.headers.items() if name not in own} for one in (response, expected)]
    assert headers[0] == headers[1]


@pytest.mark.parametrize(
    "headers",
    [{"Cookie": "c" * 60_000}, {f"X-Number-{number}": "1" for number in range(300)}],
    ids=["too large", "too many headers"],
)
def test_a_head_that_haproxy_does_not_take_gets_its_page(client: httpx.Client, headers: dict[str, str]) -> None:
    answer = client.get("/health", headers=headers)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "text/html"


def test_large_heads_with_many_headers_are_taken(client: httpx.Client) -> None:
    """As a chain of proxies and a site of many cookies make them."""
    headers = {"Cookie": "c" * 20_000, **{f"X-Number-{number}": "1" for number in range(150)}}
    assert client.get("/health", headers=headers).json() == {"status": "OK"}
