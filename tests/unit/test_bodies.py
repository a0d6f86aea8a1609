"""The kinds of body: multipart however it is written, urlencoded, JSON, each packed or not, become the same form."""

import asyncio
import base64
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from urllib.parse import urlencode

import httpx
import pytest
import zstandard
from fastapi import FastAPI, File, Form, UploadFile
from fastapi.exceptions import RequestValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.errors import ServiceError
from deployments.parsing.http.error_responses import on_service_error, on_validation_error
from deployments.parsing.http.form import form_route
from deployments.parsing.http.multipart_body import UsualForm
from deployments.parsing.http.slow_bodies import SlowBodies
from deployments.parsing.http.upload_budget import UploadBudget, UploadBudgets
from deployments.settings import Limits

UNBOUNDED = UploadBudget(lambda: 2**40, "full", lambda: 60.0)
UPLOADS = UploadBudgets(UNBOUNDED, UNBOUNDED, SlowBodies(lambda: 1000))

DEFAULTS = Limits()
MULTIPART = "multipart/form-data; boundary=cut"
URLENCODED = "application/x-www-form-urlencoded"
JSON = "application/json"


def application(limits: Limits = DEFAULTS) -> FastAPI:
    """One route that answers with what arrived."""
    app = FastAPI(exception_handlers={ServiceError: on_service_error, RequestValidationError: on_validation_error})
    files = {"image": limits.max_image_bytes}
    app.router.route_class = form_route(limits, files, lambda: 60.0, UPLOADS, limits.max_body_bytes * 2)

    @app.post("/")
    async def _(
        image: Annotated[UploadFile, File()] = None,  # type: ignore[assignment]
        image_id: Annotated[str | None, Form()] = None,
        box: Annotated[str | None, Form()] = None,
        point_coords: Annotated[str | None, Form()] = None,
        flag: Annotated[bool, Form()] = True,
        number: Annotated[float | None, Form()] = None,
    ) -> dict[str, Any]:
        content = None if image is None else base64.b64encode(await image.read()).decode()
        # Coordinates are compared as values.
        boxes, coords = (None if text is None else json.loads(text) for text in (box, point_coords))
        return {
            "image": content,
            "image_id": image_id,
            "box": boxes,
            "point_coords": coords,
            "flag": flag,
            "number": number,
        }

    return app


APP = application()


def post(
    content: bytes | AsyncIterator[bytes], content_type: str, app: FastAPI = APP, path: str = "/", **headers: str
) -> tuple[int, Any]:
    """Status and JSON of the answer."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.post(path, content=content, headers={"Content-Type": content_type, **named})

    response = asyncio.run(send())
    return response.status_code, response.json()


def message(answer: tuple[int, Any]) -> str:
    status, document = answer
    assert status == 400, answer
    return str(document["detail"]["msg"])


def values(**given: Any) -> dict[str, Any]:
    nothing = {"image": None, "image_id": None, "box": None, "point_coords": None, "flag": True, "number": None}
    return {**nothing, **given}


def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    async def generate() -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    return generate()


# ---- the same request in every way


def as_multipart(fields: dict[str, Any], image: bytes | None) -> bytes:
    parts = [] if image is None else [b'name="image"; filename="a"\r\n\r\n' + image]
    for name, value in fields.items():
        parts.append(f'name="{name}"\r\n\r\n{as_text(value)}'.encode())
    head = b"--cut\r\nContent-Disposition: form-data; "
    return b"".join(head + part + b"\r\n" for part in parts) + b"--cut--\r\n"


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_json(fields: dict[str, Any], image: bytes | None) -> bytes:
    file = {} if image is None else {"image": base64.b64encode(image).decode()}
    return json.dumps(fields | file).encode()


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def raw_deflate(content: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(content) + stream.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip in capitals": ("X-GZIP", gzip.compress),
    "gzip in two members": ("gzip", lambda content: gzip.compress(content[:7]) + gzip.compress(content[7:])),
    "deflate": ("deflate", zlib.compress),
    "deflate without zlib's header": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd),
    "identity": ("identity", bytes),
    "gzip and identity": ("gzip, identity", gzip.compress),
}

coordinates = st.floats(-1e6, 1e6, width=32) | st.integers(-1000, 1000)
requests = st.fixed_dictionaries(
    {},
    optional={
        "image_id": st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=20),
        "box": st.lists(coordinates, min_size=4, max_size=4),
        "point_coords": st.lists(st.lists(coordinates, min_size=2, max_size=2), min_size=1, max_size=5),
        "flag": st.booleans(),
        "number": st.floats(-1e9, 1e9) | st.integers(-5, 5),
        "other": st.sampled_from(["x", 5, [1, ["]"]], {"a": "}"}]),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fields=requests,
    image=st.none() | st.binary(min_size=1, max_size=2000),
    packing=st.none() | st.sampled_from(sorted(PACKED)),
    size=st.integers(1, 400),
)
def test_the_same_request_means_the_same_in_every_body(
    fields: dict[str, Any], image: bytes | None, packing: str | None, size: int
) -> None:
    bodies = [(MULTIPART, as_multipart(fields, image)), (JSON, as_json(fields, image))]
    if image is None:
        texts = {name: as_text(value) for name, value in fields.items()}
        bodies.append((URLENCODED, urlencode(texts).encode()))
    content = None if image is None else base64.b64encode(image).decode()
    expected = values(image=content, **{name: value for name, value in fields.items() if name != "other"})
    for content_type, body in bodies:
        coding, pack = PACKED.get(packing or "", ("", bytes))
        headers: dict[str, Any] = {"Content_Encoding": coding} if coding else {}
        assert post(pieces(pack(body), size), content_type, **headers) == (200, expected), content_type


# ---- urlencoded


def test_a_form_without_a_file_may_be_urlencoded() -> None:
    body = b"image_id=%61b+c&box=%5B0%2C0%2C1%2C1%5D&flag=false&&number=&other=1"
    assert post(body, f"{URLENCODED}; charset=UTF-8") == (200, values(image_id="ab c", box=[0, 0, 1, 1], flag=False))


def test_an_urlencoded_file_is_refused_as_a_field() -> None:
    status, answer = post(b"image=abc", URLENCODED)
    assert (status, answer["detail"][0]["loc"]) == (422, ["body", "image"])


@pytest.mark.parametrize("value", [b"x" * 2001, b"%61" * 2001, b"x" * 7000])
def test_a_large_urlencoded_field_is_refused_naming_it(value: bytes) -> None:
    app = application(Limits(max_form_field_bytes=2000))
    assert post(b"box=%5B%5D", URLENCODED, app)[0] == 200
    assert post(b"box=" + value, URLENCODED, app) == (
        413,
        {"detail": {"msg": "box: has more than the 2000 bytes that are accepted"}},
    )


def test_a_field_given_twice_is_refused_in_every_body() -> None:
    assert message(post(b"box=[]&box=[]", URLENCODED)) == "box: is given 2 times"
    assert message(post(b'{"box":[],"box":"[]"}', JSON)) == "box: is given 2 times"


def test_thousands_of_fields_are_refused_in_every_body() -> None:
    assert message(post(b"&".join(b"f%d=" % n for n in range(5000)), URLENCODED)) == "body: has more than 64 fields"
    many = json.dumps({f"f{n}": 1 for n in range(5000)}).encode()
    assert message(post(many, JSON)) == "body: has more than 64 fields"


# ---- JSON


IMAGE = bytes(range(256)) * 20
BASE64 = base64.b64encode(IMAGE).decode()

AS_A_FILE = {
    "plain": BASE64,
    "a data: URL": f"data:image/png;base64,{BASE64}",
    "a data: URL with parameters": f"data:image/png;name=a.png;base64,{BASE64}",
    "in lines": "\r\n".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76)),
    "without its end": BASE64.rstrip("="),
    "for URLs": BASE64.replace("+", "-").replace("/", "_"),
}


@pytest.mark.parametrize("text", AS_A_FILE.values(), ids=AS_A_FILE)
@pytest.mark.parametrize("size", [1, 5, 64, 10**6])
def test_an_image_is_base64_in_json(text: str, size: int) -> None:
    status, answer = post(pieces(json.dumps({"image": text, "flag": False}).encode(), size), JSON)
    assert (status, answer) == (200, values(image=BASE64, flag=False))


@pytest.mark.parametrize("escaped", [BASE64.replace("/", "\\/"), BASE64.replace("+", "\\u002B")])
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_escapes_within_base64_are_read(escaped: str, size: int) -> None:
    assert post(pieces(f'{{"image": "{escaped}"}}'.encode(), size), JSON) == (200, values(image=BASE64))


NO_FILES: dict[str, Any] = {
    "an address": "https://example.org/a.png",
    "a path": "cat.png",
    "a data: URL of text": "data:text/plain,hello",
    "one digit": "Q",
    "padding inside": "QQ==QQ==",
    "padding alone": "====",
    "a long text with a foreign sign": "A" * 5000 + "!",
    "an escape of another letter": "A\u1234",
}


@pytest.mark.parametrize("text", NO_FILES.values(), ids=NO_FILES)
@pytest.mark.parametrize("size", [3, 10**6])
def test_what_is_no_base64_is_refused_naming_the_field(text: str, size: int) -> None:
    told = message(post(pieces(json.dumps({"image": text}).encode(), size), JSON))
    assert told.startswith("image: must be the file itself as base64")


@pytest.mark.parametrize("value", [5, [1], {"a": 1}, True])
def test_an_image_of_another_type_is_refused_naming_it(value: Any) -> None:
    assert message(post(json.dumps({"image": value}).encode(), JSON)) == (
        "image: must be text in JSON, the file as base64"
    )


def test_null_and_an_empty_text_are_not_given() -> None:
    body = {"image": None, "image_id": None, "box": None, "flag": None, "number": None}
    assert post(json.dumps(body).encode(), JSON) == (200, values())
    assert post(json.dumps({"image": "", "number": "", "box": ""}).encode(), JSON) == (200, values())
    assert post(b" {} \r\n", JSON) == (200, values())


def test_numbers_may_be_arrays_or_the_text_of_the_form() -> None:
    expected = (200, values(box=[1, 2.5, 3e2, 4], point_coords=[[1, 2]]))
    assert post(b'{"box": [1, 2.5, 3e2, 4], "point_coords": [[1,2]]}', JSON) == expected
    assert post(b'{"box": "[1, 2.5, 3e2, 4]", "point_coords": "[[1,2]]"}', JSON) == expected
    assert post(b'\xef\xbb\xbf{"box":[1,2.5,3e2,4],"point_coords":[[1,2]]}', JSON) == expected


@pytest.mark.parametrize(
    ("body", "name"), [({"flag": [True]}, "flag"), ({"flag": 7}, "flag"), ({"number": {"a": 1}}, "number")]
)
def test_a_value_of_a_wrong_type_is_refused_as_in_a_form(body: dict[str, Any], name: str) -> None:
    status, answer = post(json.dumps(body).encode(), JSON)
    assert (status, [fault["loc"] for fault in answer["detail"]]) == (422, [["body", name]])


NO_JSON = {
    "nothing": b"",
    "an array": b"[]",
    "a text": b'"box"',
    "a number": b"7",
    "cut off": b'{"box": [1, 2',
    "cut off in a text": b'{"image_id": "abc',
    "cut off in a name": b'{"box',
    "cut off in a number": b'{"number": 1',
    "no colon": b'{"box" [1]}',
    "no comma": b'{"box": [1] "flag": true}',
    "a comma too many": b'{"box": [1],}',
    "a name without quotes": b"{box: [1]}",
    "single quotes": b"{'box': [1]}",
    "two objects": b"{}{}",
    "text after it": b"{} x",
    "another encoding": '{"box": [1]}'.encode("utf-16"),
    "a wrong escape in a name": b'{"bo\\x": 1}',
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    for size in (1, 10**6):
        assert message(post(pieces(body, size), JSON)).startswith("body: is not valid JSON: ")


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1.", "tru", "undefined", "01", "", '"\\x"', '"\n"'])
def test_a_value_that_is_no_json_is_refused_naming_its_field(value: str) -> None:
    assert message(post(f'{{"number": {value}}}'.encode(), JSON)).startswith("number: is not valid JSON: ")


def test_limits_hold_in_json() -> None:
    app = application(Limits(max_form_field_bytes=2000, max_image_bytes=3000, max_body_bytes=10_000))

    def refused(body: bytes) -> str:
        status, answer = post(pieces(body, 100), JSON, app)
        assert status == 413
        return str(answer["detail"]["msg"])

    accepted = {"box": [1] * 600, "image_id": "x" * 1900, "image": base64.b64encode(bytes(3000)).decode()}
    assert post(json.dumps(accepted).encode(), JSON, app)[0] == 200
    assert refused(json.dumps({"box": [1] * 700}).encode()) == "box: has more than the 2000 bytes that are accepted"
    assert refused(json.dumps({"image_id": "x" * 2001}).encode()).startswith("image_id: has more than the 2000")
    image = base64.b64encode(bytes(3001)).decode()
    assert refused(json.dumps({"image": image}).encode()) == "image: has more than the 3000 bytes that are accepted"
    assert refused(b'{"' + b"n" * 1001 + b'": 1}') == "body: a name has more than the 1000 bytes that are accepted"
    # The limit for files on disk is not that for what is held in memory.
    assert refused(b"{" + b" " * 10_000 + b"}") == "body: has more than the 10000 bytes that are accepted"


def test_a_text_of_many_escapes_or_brackets_takes_no_time() -> None:
    started = time.monotonic()
    assert post(b'{"image_id": "' + b"\\n" * 2_000_000 + b'"}', JSON)[0] == 200
    status, answer = post(b'{"box": [' + b"[]," * 2_000_000 + b"[]]}", JSON)
    assert (status, answer["detail"]["msg"]) == (
        413,
        "box: has too many brackets and texts; a body may have 1000000",
    )
    assert time.monotonic() - started < 10


# ---- packed bodies


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "gzip, br", "klingon"])
def test_another_coding_is_refused_naming_it(coding: str) -> None:
    status, answer = post(b"{}", JSON, Content_Encoding=coding)
    assert status == 415
    assert answer["detail"]["msg"].startswith(f"Content-Encoding: '{coding}' is not supported")


@pytest.mark.parametrize("name", ["gzip", "deflate", "deflate without zlib's header", "zstd"])
def test_a_packed_body_that_is_cut_off_or_broken_is_refused(name: str) -> None:
    coding, pack = PACKED[name]
    packed = pack(as_json({"box": [1, 2, 3, 4]}, IMAGE))
    for broken in (packed[:-3], packed[: len(packed) // 2], b"\xff" * 100, b""):
        assert message(post(broken, JSON, Content_Encoding=coding)).startswith(f"body: is not well-formed {coding}: ")


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd"])
def test_a_bomb_ends_at_the_limit(name: str) -> None:
    coding, pack = PACKED[name]
    bomb = pack(b'{"image_id": "' + bytes(80 * 2**20))
    app = application(Limits(max_body_bytes=20 * 2**20))
    started = time.monotonic()
    status, answer = post(bomb, JSON, app, Content_Encoding=coding)
    assert (status, answer["detail"]["msg"]) == (413, "body: has more than the 20971520 bytes that are accepted")
    assert time.monotonic() - started < 10


def test_a_packed_body_counts_as_it_arrives_too() -> None:
    app = application(Limits(max_body_bytes=2000))
    empty_members = gzip.compress(b"") * 120
    status, answer = post(pieces(empty_members, 100), JSON, app, Content_Encoding="gzip")
    assert (status, answer["detail"]["msg"]) == (413, "body: has more than the 2000 bytes that are accepted")


def test_a_packed_body_of_thousands_of_members_is_refused() -> None:
    told = message(post(gzip.compress(b"") * 5000, JSON, Content_Encoding="gzip"))
    assert told.startswith("body: is not well-formed gzip: ")


# ---- multipart however it is written

FILE = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n12345\r\n'
TEXT = b'Content-Disposition: form-data; name="box"\r\n\r\n[0,0,1,1]\r\n'
READ = values(image=base64.b64encode(b"12345").decode(), box=[0, 0, 1, 1])

UNUSUAL = {
    "as usual": b"--cut\r\n" + FILE + b"--cut\r\n" + TEXT + b"--cut--\r\n",
    "a line before it": b"\r\n--cut\r\n" + FILE + b"--cut\r\n" + TEXT + b"--cut--",
    "a preamble": b"This is a form.\r\n--cutting edge - --cut\r\n--cut\r\n" + FILE + b"--cut\r\n" + TEXT + b"--cut--",
    "an epilogue": b"--cut\r\n" + FILE + b"--cut\r\n" + TEXT + b"--cut--\r\nThe end.\r\n--cut\r\n" + TEXT,
    "padding after boundaries": b"--cut \t \r\n" + FILE + b"--cut\t\r\n" + TEXT + b"--cut-- \t\r\n",
    "folded headers": b"--cut\r\n"
    + FILE.replace(b"; ", b";\r\n ").replace(b"form-data", b"\r\n\tform-data")
    + b"--cut\r\n"
    + TEXT.replace(b"; name", b";\r\n\t  name")
    + b"--cut--\r\n",
    "a header that ends in an empty line of white space": b"--cut\r\n"
    + FILE.replace(b'"a.png"', b'"a.png"\r\n ')
    + b"--cut\r\n"
    + TEXT
    + b"--cut--\r\n",
    "filename* alone": b"--cut\r\n"
    + FILE.replace(b'filename="a.png"', b"filename*=UTF-8''%e2%82%ac.png")
    + b"--cut\r\n"
    + TEXT
    + b"--cut--\r\n",
    "filename* in parts": b"--cut\r\n"
    + FILE.replace(b'filename="a.png"', b"FileName*0*=UTF-8''%e2; filename*1=x.png")
    + b"--cut\r\n"
    + TEXT
    + b"--cut--\r\n",
}


@pytest.mark.parametrize("body", UNUSUAL.values(), ids=UNUSUAL)
def test_multipart_is_read_as_rfc_2046_says(body: bytes) -> None:
    for size in (1, 2, 3, 7, 64, 10**6):
        assert post(pieces(body, size), MULTIPART) == (200, READ), size


def test_content_that_looks_like_a_boundary_stays_as_it_is() -> None:
    content = b"\r\n--cu\r\n--cutting\r\n --cut\r\n--cu\r\r\n\r\nfolded:\r\n not\r\n--cut-\r\n"
    body = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + content + b"\r\n--cut--"
    for size in (1, 2, 5, 10**6):
        status, answer = post(pieces(body, size), MULTIPART)
        assert (status, base64.b64decode(answer["image"])) == (200, content)


@pytest.mark.parametrize("name", ['"filename*=x"', '"a;filename*=x"'])
def test_a_name_that_only_quotes_it_makes_no_file(name: str) -> None:
    body = b"--cut\r\nContent-Disposition: form-data; name=" + name.encode() + b"\r\n\r\n1\r\n--cut--"
    assert post(body, MULTIPART) == (200, values())


@given(body=st.binary(max_size=200), sizes=st.lists(st.integers(1, 20), min_size=1))
def test_pieces_do_not_change_how_a_body_is_rewritten(body: bytes, sizes: list[int]) -> None:
    # Random bytes would hardly ever hold a boundary.
    for sign, text in ((b"\x00", b"\r\n--cut"), (b"\x01", b"\r\n"), (b"\x02", b" "), (b"\x03", b"--")):
        body = body.replace(sign, text)
    whole = UsualForm(b"cut").feed(body)
    usual, at, rewritten = UsualForm(b"cut"), 0, b""
    while at < len(body):
        size = sizes[at % len(sizes)]
        rewritten += usual.feed(body[at : at + size])
        at += size
    assert rewritten == whole


def test_lines_without_end_are_refused_in_little_time() -> None:
    started = time.monotonic()
    for body in (b"--cut\r\n" + b"a:\r\n" * 500_000, b"--cut" + b" " * 2_000_000, b"\r\n--cut" * 300_000):
        assert message(post(pieces(body, 2**18), MULTIPART)).startswith("body: is not well-formed")
    assert time.monotonic() - started < 10


# ---- what counts as given


@pytest.mark.parametrize("filename", ["", "a.png"])
def test_an_empty_file_beside_an_id_is_not_given(filename: str) -> None:
    empty = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="%b"\r\n\r\n\r\n' % filename.encode()
    an_id = b'--cut\r\nContent-Disposition: form-data; name="image_id"\r\n\r\nabc\r\n'
    assert post(empty + an_id + b"--cut--", MULTIPART) == (200, values(image_id="abc"))
    full = empty.replace(b"\r\n\r\n", b"\r\n\r\n1", 1)
    assert post(full + an_id + b"--cut--", MULTIPART) == (200, values(image="MQ==", image_id="abc"))


def test_an_empty_file_alone_is_a_file() -> None:
    empty = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n\r\n--cut--'
    assert post(empty, MULTIPART) == (200, values(image=""))


@pytest.mark.parametrize("name", ["point_coords[0][]", "points", "Image", "boxes"])
def test_a_name_that_is_nearly_ours_is_refused_in_every_body(name: str) -> None:
    for body, content_type in (
        (as_multipart({name: "1"}, b"1"), MULTIPART),
        (json.dumps({name: [1]}).encode(), JSON),
        (urlencode({name: "1"}).encode(), URLENCODED),
    ):
        assert message(post(body, content_type)).startswith(f"{name}: is not a field; did you mean ")
    # PHP's arrays come as many fields of one name.
    assert "did you mean point_coords" in message(post(b"point_coords[]=1&point_coords[]=2", URLENCODED))


def test_a_field_in_the_url_is_refused_and_another_parameter_ignored() -> None:
    assert message(post(b"{}", JSON, path="/?box=[1]")) == "box: is in the URL; send box in the body"
    assert post(b"{}", JSON, path="/?utm_source=x")[0] == 200


@pytest.mark.parametrize("framing", [{"Content_Length": "100"}, {"Transfer_Encoding": "chunked"}])
def test_a_body_that_the_server_dropped_for_an_upgrade_is_told_as_such(framing: dict[str, str]) -> None:
    lost: dict[str, Any] = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", **framing}
    assert message(post(pieces(b"", 1), MULTIPART, **lost)).startswith("Upgrade: 'h2c' is not supported")
    body = as_multipart({"box": [1]}, b"1")
    assert post(body, MULTIPART, Connection="Upgrade", Upgrade="h2c")[0] == 200
