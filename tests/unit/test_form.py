"""Multipart form to Prompt: the JSON in its fields, and the body within its limits."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, File, Form, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from deployments.errors import BodyTimeout, InvalidPrompt, ServiceError, TooLarge
from deployments.messages.prompt import Prompt
from deployments.parsing.http.error_responses import on_http_exception, on_service_error
from deployments.parsing.http.form import form_route, parse_prompt
from deployments.parsing.http.slow_bodies import SlowBodies
from deployments.parsing.http.upload_budget import UploadBudget, UploadBudgets
from deployments.settings import Limits

UNBOUNDED = UploadBudget(lambda: 2**40, "full", lambda: 60.0)
UPLOADS = UploadBudgets(UNBOUNDED, UNBOUNDED, SlowBodies(lambda: 1000))

DEFAULTS = Limits()

CUT = b"multipart/form-data; boundary=cut"

# ---- the JSON in the fields


def parse(field: str, text: str | None, limits: Limits = DEFAULTS) -> Prompt:
    return parse_prompt({field: text}, multimask_output=True, normalize_coords=True, limits=limits)


def test_the_fields_become_a_prompt() -> None:
    prompt = parse_prompt(
        {"point_coords": "[[1, 0.5]]", "point_labels": "[1]", "box": "[0,0,1,0.25]", "mask_input": None},
        multimask_output=False,
        normalize_coords=False,
        limits=Limits(),
    )

    assert prompt.point_coords is not None
    assert prompt.box is not None
    assert prompt.point_coords.tolist() == [[1, 0.5]]
    assert prompt.box.tolist() == [0, 0, 1, 0.25]
    assert (prompt.mask_input, prompt.multimask_output, prompt.normalize_coords) == (None, False, False)


@pytest.mark.parametrize("nothing", [None, "", "  \n", "null", " null "])
@pytest.mark.parametrize("field", ["point_coords", "point_labels", "box", "mask_input"])
def test_an_empty_field_counts_as_not_given(field: str, nothing: str | None) -> None:
    assert getattr(parse(field, nothing), field) is None


NOT_JSON = "is not valid JSON: "
NO_NUMBERS = "must hold numbers only"

NOT_ARRAYS = {
    "unclosed": ("[[1,2]", NOT_JSON),
    "unclosed and deep": ("[" * 50_000, NOT_JSON),
    "words": ("ten and twelve", NOT_JSON),
    "numbers": ("1 2", NOT_JSON),
    "python": ("[(1, 2)]", NOT_JSON),
    "single quotes": ("[['1', '2']]", NOT_JSON),
    "trailing comma": ("[[1,2],]", NOT_JSON),
    "trailing comma inside": ("[1,2,]", NOT_JSON),
    "two arrays": ("[1] [2]", NOT_JSON),
    "NaN": ("[[NaN,1]]", NOT_JSON),
    "Infinity": ("[[Infinity,1]]", NOT_JSON),
    "-Infinity": ("[[1,-Infinity]]", NOT_JSON),
    "1e400": ("[1e400]", NOT_JSON),
    "1e999": ("[[1e999,1]]", NOT_JSON),
    "half a surrogate pair": ("\ud800", NOT_JSON),
    # Starlette reads a part that is no UTF-8 as latin-1.
    "invalid UTF-8": (b"[[1,2]]\xff\xfe".decode("latin-1"), NOT_JSON),
    "a zero byte": ("[[1,2]\x00]", NOT_JSON),
    "a byte order mark": ("\ufeff[[1,2]]", NOT_JSON),
    "emoji": ("[[1️⃣,2️⃣]]", NOT_JSON),
    "closed and deep": ("[" * 500 + "1" + "]" * 500, ""),
    "deeper than numpy": ("[" * 70 + "1" + "]" * 70, ""),
    "five dimensions": ("[[[[[1]]]]]", "must be "),
    "a number": ("7", "must be a JSON array, is int"),
    "a boolean": ("true", "must be a JSON array, is bool"),
    "a string": ('"[[1,2]]"', "must be a JSON array, is str"),
    "an object": ('{"x":1,"y":2}', "must be a JSON array, is dict"),
    "an object inside": ('[{"x":1,"y":2}]', NO_NUMBERS),
    "a word inside": ('["a"]', NO_NUMBERS),
    "strings inside": ('[["1","2"]]', NO_NUMBERS),
    "a string among numbers": ('[["1",2]]', NO_NUMBERS),
    "null alone inside": ("[null]", NO_NUMBERS),
    "null inside": ("[[null,1]]", NO_NUMBERS),
    "a boolean alone inside": ("[true]", NO_NUMBERS),
    "booleans inside": ("[[true,false]]", NO_NUMBERS),
    "a boolean among numbers": ("[[true,10]]", NO_NUMBERS),
    "beyond float32": ("[1e39]", "must be finite"),
    "beyond float32 inside": ("[[1e39,1]]", "must be finite"),
    "an empty array": ("[]", "is empty"),
    "an empty row": ("[[]]", ""),
    "ragged": ("[[1,2],[3]]", "the rows have different lengths"),
    "ragged in depth": ("[[1,2],3]", "the rows have different lengths"),
}
"""Text that is no array of numbers in any field; tests/integration/test_bad_input.py sends some of it over HTTP."""


@pytest.mark.parametrize("field", ["point_coords", "point_labels", "box", "mask_input"])
@pytest.mark.parametrize(("text", "message"), NOT_ARRAYS.values(), ids=NOT_ARRAYS)
def test_malformed_text_is_refused_naming_the_field(field: str, text: str, message: str) -> None:
    with pytest.raises(InvalidPrompt) as refused:
        parse(field, text)

    assert refused.value.message.startswith(f"{field}: {message}")


def test_a_label_beyond_int64_is_unknown() -> None:
    with pytest.raises(InvalidPrompt, match="point_labels: unknown label 1e"):
        parse_prompt(
            {"point_coords": "[[10,10]]", "point_labels": "[99999999999999999999]"},
            multimask_output=True,
            normalize_coords=True,
            limits=DEFAULTS,
        )


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_who_sends_nan_is_told_that_it_is_not_json(word: str) -> None:
    with pytest.raises(InvalidPrompt, match="NaN and Infinity are not JSON"):
        parse("box", f"[0, 0, 1, {word}]")


@pytest.mark.parametrize("field", ["point_coords", "point_labels", "box"])
def test_text_longer_than_any_sensible_prompt_is_not_parsed(field: str) -> None:
    with pytest.raises(TooLarge, match=f"{field}: has more than the 768 characters that 10 points can need"):
        parse(field, "[" * 769, Limits(max_points=10, max_objects=2))


# ---- the body


def application(limits: Limits) -> FastAPI:
    """One route that takes a form, and answers with what arrived."""
    app = FastAPI(exception_handlers={ServiceError: on_service_error, HTTPException: on_http_exception})
    app.router.route_class = form_route(limits, {"image": limits.max_image_bytes}, lambda: 60.0, UPLOADS)

    @app.post("/")
    async def _(
        image: Annotated[UploadFile, File()],
        box: Annotated[str | None, Form()] = None,
        flag: Annotated[bool, Form()] = True,
    ) -> dict[str, Any]:
        return {"filename": image.filename, "bytes": len(await image.read()), "box": box, "flag": flag}

    return app


def post(limits: Limits = DEFAULTS, **request: Any) -> tuple[int, Any]:
    """Status and JSON of the answer."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(application(limits))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.post("/", **request)

    response = asyncio.run(send())
    return response.status_code, response.json()


def refusal(message: str) -> dict[str, Any]:
    return {"detail": {"msg": message}}


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    attribute = f'; filename="{filename}"' if filename is not None else ""
    return f'--cut\r\nContent-Disposition: form-data; name="{name}"{attribute}\r\n\r\n'.encode() + content + b"\r\n"


def post_raw(body: bytes, limits: Limits = DEFAULTS, content_type: str = "multipart/form-data; boundary=cut") -> Any:
    return post(limits, content=body, headers={"Content-Type": content_type})


def in_pieces(body: bytes, size: int = 64) -> AsyncIterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    return pieces()


@pytest.mark.parametrize("filename", ["a.png", "фото 猫 é.png", "C:\\x\\a.png", 'quo"te.png', "a" * 500])
def test_a_form_is_read_whatever_the_file_is_called(filename: str) -> None:
    status, answer = post(files={"image": (filename, b"12345")}, data={"box": "[0,0,1,1]", "flag": "false"})

    assert status == 200
    assert (answer["bytes"], answer["box"], answer["flag"]) == (5, "[0,0,1,1]", False)


def test_a_file_larger_than_memory_is_meant_for_is_read_whole() -> None:
    assert post(files={"image": ("a.png", b"x" * 3_000_000)})[1]["bytes"] == 3_000_000


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=cut", 'Multipart/Form-Data; boundary="cut"'])
def test_the_content_type_may_be_written_as_http_allows(content_type: str) -> None:
    assert post_raw(part("image", b"12345", "a.png") + b"--cut--\r\n", content_type=content_type)[0] == 200


def test_a_part_may_arrive_in_any_pieces() -> None:
    body = part("image", b"x" * 1000, "a.png") + part("box", b"[0,0,1,1]") + b"--cut--\r\n"

    for size in (1, 7, 64):
        status, answer = post(
            content=in_pieces(body, size), headers={"Content-Type": "multipart/form-data; boundary=cut"}
        )
        assert (status, answer["bytes"], answer["box"]) == (200, 1000, "[0,0,1,1]")


@pytest.mark.parametrize(
    ("content_type", "told"),
    [
        ("text/plain", "text/plain"),
        ("multipart/mixed; boundary=cut", "multipart/mixed; boundary=cut"),
        ("", "missing"),
    ],
)
def test_another_content_type_is_refused(content_type: str, told: str) -> None:
    assert post_raw(b"{}", content_type=content_type) == (
        415,
        refusal(
            "Content-Type: must be multipart/form-data, application/x-www-form-urlencoded or application/json, "
            f"is '{told}'"
        ),
    )


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (part("image", b"12345", "a.png") + b"--cut--\r\n", "multipart/form-data"),
        (part("image", b"12345", "a.png") + b"--cut--\r\n", "multipart/form-data; boundary="),
        (b"nonsense", "multipart/form-data; boundary=cut"),
        (b"--cut\r\nnonsense", "multipart/form-data; boundary=cut"),
        (b"--cut\r\nContent-Disposition: form-data\r\n\r\n1\r\n--cut--\r\n", "multipart/form-data; boundary=cut"),
        (part("image", b"12345", "a.png"), "multipart/form-data; boundary=cut"),
        (part("image", b"12345", "a.png")[:-20], "multipart/form-data; boundary=cut"),
        (b"", "multipart/form-data; boundary=cut"),
    ],
    ids=["no boundary", "empty boundary", "no part", "bad header", "no name", "no end", "cut short", "empty"],
)
def test_a_broken_body_is_refused(body: bytes, content_type: str) -> None:
    status, answer = post_raw(body, content_type=content_type)

    assert status == 400
    assert answer["detail"]["msg"].startswith("body: is not well-formed multipart/form-data: ")


@pytest.mark.parametrize(
    ("charset", "status"),
    [("idna", 400), ("punycode", 400), ("utf-16", 400), ("no-such-charset", 200), ("latin-1", 200), ("UTF8", 200)],
)
def test_only_plain_charsets_are_decoded(charset: str, status: int) -> None:
    body = part("image", b"12345", "a.png") + part("box", b"\xff\xfe\xfd..") + b"--cut--\r\n"

    assert post_raw(body, content_type=f"multipart/form-data; boundary=cut; charset={charset}")[0] == status


def test_a_long_punycode_field_is_refused_before_its_slow_decoder_runs() -> None:
    body = part("box", b"1" * 300_000) + part("image", b"12345", "a.png") + b"--cut--\r\n"
    started = time.monotonic()

    assert post_raw(body, content_type="multipart/form-data; boundary=cut; charset=punycode")[0] == 400
    assert time.monotonic() - started < 5


def test_a_string_among_many_numbers_is_refused_without_an_array_of_strings() -> None:
    text = f'["{"x" * 20_000}"' + ",1" * 25_000 + "]"

    with pytest.raises(InvalidPrompt, match="mask_input: must hold numbers only"):
        parse("mask_input", text)


def test_more_rows_than_any_mask_has_are_refused_before_parsing() -> None:
    with pytest.raises(TooLarge, match="mask_input: has more rows"):
        parse("mask_input", "[" + "[]," * 1_000_000 + "[]]")


def test_a_field_given_twice_is_refused() -> None:
    body = part("image", b"1", "a.png") + part("box", b"[0,0,1,1]") * 2 + b"--cut--\r\n"

    assert post_raw(body) == (400, refusal("box: is given 2 times"))


def test_two_images_are_refused() -> None:
    assert post_raw(part("image", b"1", "a.png") * 3 + b"--cut--\r\n") == (400, refusal("image: is given 3 times"))


def test_thousands_of_fields_are_refused() -> None:
    body = b"".join(part(f"f{number}", b"") for number in range(5000)) + b"--cut--\r\n"

    assert post_raw(body)[0] == 400


def test_a_large_image_is_refused_naming_the_field() -> None:
    files = {"image": ("a.png", b"x" * 3001)}

    assert post(Limits(max_image_bytes=3001), files=files)[0] == 200
    assert post(Limits(max_image_bytes=3000), files=files) == (
        413,
        refusal("image: has more than the 3000 bytes that are accepted"),
    )


def test_a_large_image_that_arrives_in_pieces_is_refused() -> None:
    body = part("image", b"x" * 3001, "a.png") + b"--cut--\r\n"

    status, _ = post(
        Limits(max_image_bytes=3000),
        content=in_pieces(body),
        headers={"Content-Type": "multipart/form-data; boundary=cut"},
    )

    assert status == 413


def test_a_large_text_field_is_refused_naming_the_field() -> None:
    def request(length: int) -> tuple[int, Any]:
        return post(Limits(max_form_field_bytes=2000), files={"image": b"1"}, data={"box": " " * length})

    assert request(2000)[0] == 200
    assert request(2001) == (413, refusal("box: has more than the 2000 bytes that are accepted"))


def test_an_announced_body_that_is_too_large_is_refused_unread() -> None:
    status, answer = post(Limits(max_body_bytes=5000), files={"image": b"x" * 6000})

    assert status == 413
    assert answer["detail"]["msg"].startswith("body: has 6")
    assert answer["detail"]["msg"].endswith(" bytes, more than the 5000 that are accepted")


@pytest.mark.parametrize("announced", [None, "10", "-1", "many"])
def test_a_body_is_counted_whatever_was_announced(announced: str | None) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    if announced is not None:
        headers["Content-Length"] = announced

    status, answer = post(
        Limits(max_body_bytes=5000), content=in_pieces(part("image", b"x" * 6000, "a.png")), headers=headers
    )

    assert (status, answer) == (413, refusal("body: has more than the 5000 bytes that are accepted"))


def test_reading_stops_at_the_limit() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield part("image", b"", "a.png")[:-2]
        while True:
            taken += 1000
            yield b"x" * 1000

    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    status, _ = post(Limits(max_image_bytes=50_000), content=endless(), headers=headers)

    assert status == 413
    assert taken <= 52_000


def test_bytes_that_are_no_text_in_a_refusal_still_make_json() -> None:
    name = b'--cut\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\n1\r\n'

    status, answer = post_raw(name * 2 + b"--cut--\r\n")

    assert status == 400
    assert answer["detail"]["msg"].endswith(": is given 2 times")


async def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async def stalled() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        """Nothing is sent: the error goes to the application's handlers."""

    async def endpoint(image: Annotated[UploadFile, File()]) -> None:
        """Never reached."""

    route = form_route(DEFAULTS, {"image": 1}, lambda: 0.05, UPLOADS)("/", endpoint, methods=["POST"])
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "query_string": b""}
    scope |= {"headers": [(b"content-type", CUT)], "fastapi_middleware_astack": AsyncExitStack()}
    with pytest.raises(BodyTimeout, match=r"body: did not arrive within 0.05 s"):
        await route.get_route_handler()(Request(scope, stalled, send))
