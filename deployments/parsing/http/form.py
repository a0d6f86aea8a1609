"""Reads multipart forms: the body within its limits, and a Prompt from the JSON in its fields."""

import asyncio
import dataclasses
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from inspect import Parameter, Signature
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Form
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import BodyTimeout, InvalidPrompt, InvalidRequest, TooLarge, UnsupportedMediaType
from deployments.messages.arrays import LOW_RES_SIZE
from deployments.messages.prompt import Prompt
from deployments.parsing.http.request_context import context_of
from deployments.settings import Limits
from deployments.telemetry.tracing import span

T = TypeVar("T")

PROMPT_FIELDS = ("point_coords", "point_labels", "box", "mask_input")

# No route takes more; a client that sends thousands of fields is not talking to this service.
MAX_FIELDS = 64

# The longest sensible JSON text of one point, `[x,y],` with two float64 at full length, rounded up.
POINT_TEXT_BYTES = 64

# The names are those of Python's codecs; latin-1 is Starlette's substitute for a charset that it does not know.
CHARSETS = {"utf-8", "ascii", "iso8859-1", "latin-1"}

# Advice for clients that send another content type.
HINTS = {
    "application/x-www-form-urlencoded": "; for a form without a file, requests and httpx send multipart if each field "
    "is given as files={name: (None, value)}"
}

NUMBERS_ONLY = re.compile(r"[\s\d\[\],.eE+-]*")


class LimitedMultiPartParser(MultiPartParser):
    """Starlette's parser, which here also limits the size of file parts and names the field that is too large.

    Attributes:
        max_field_bytes: limit on a text field.
        max_file_bytes: limits on files, by the names of their fields.
        ended: whether the closing boundary was read.
    """

    max_field_bytes = 0
    max_file_bytes: Mapping[str, int] = {}
    ended = False

    def on_part_begin(self) -> None:
        """Rejects charsets whose decoders are slow or surprising: punycode, for one, takes quadratic time."""
        if self._charset not in CHARSETS:
            raise InvalidRequest(f"Content-Type: charset {self._charset} is not supported; use utf-8")
        super().on_part_begin()

    def on_end(self) -> None:
        """Notes that the closing boundary has arrived; if it is missing, Starlette silently drops the last part."""
        self.ended = True

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Counts each part's bytes as they arrive.

        Raises:
            TooLarge: the part exceeds its limit.
        """
        part = self._current_part
        if part.file is None:
            size, limit = len(part.data), self.max_field_bytes
        else:
            size = (part.file.size or 0) + self._unwritten_bytes()
            # A file that the route ignores has the limit of the largest file that the route reads.
            limit = self.max_file_bytes.get(part.field_name, max(self.max_file_bytes.values()))
        if size + end - start > limit:
            raise TooLarge(f"{part.field_name}: has more than the {limit} bytes that are accepted")
        super().on_part_data(data, start, end)

    def _unwritten_bytes(self) -> int:
        return sum(len(data) for part, data in self._file_parts_to_write if part is self._current_part)


class FormRequest(Request):
    """A request whose form this module has read and stored in `_form`, where FastAPI finds it and reads no more."""

    async def read_form(self, limits: Limits, max_file_bytes: Mapping[str, int]) -> None:
        """Reads the body within the limits.

        Args:
            limits: limits on the body and on text fields.
            max_file_bytes: limit on each file that the route reads, by the name of its field.

        Raises:
            UnsupportedMediaType: the body is not multipart/form-data.
            InvalidRequest: the body is not well-formed, or a field is given twice.
            TooLarge: the body, the image or a text field exceeds its limit.
        """
        content_type = self.headers.get("content-type", "")
        kind = content_type.split(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise UnsupportedMediaType(
                f"Content-Type: must be multipart/form-data, is {content_type or 'missing'!r}{HINTS.get(kind, '')}"
            )
        parser = LimitedMultiPartParser(
            self.headers,
            self._limited_stream(limits.max_body_bytes),  # type: ignore[arg-type]
            max_files=MAX_FIELDS,
            max_fields=MAX_FIELDS,
            max_part_size=limits.max_form_field_bytes,
        )
        parser.max_field_bytes, parser.max_file_bytes = limits.max_form_field_bytes, max_file_bytes
        try:
            self._form = await parser.parse()
        except MultiPartException as error:
            raise InvalidRequest(f"body: is not well-formed multipart/form-data: {error.message}") from error
        except ValueError as error:
            raise InvalidRequest(f"Content-Type: names a charset that cannot be looked up: {error}") from error
        if not parser.ended:
            raise InvalidRequest("body: is not well-formed multipart/form-data: its closing boundary is missing")
        _check_single(self._form)

    async def _limited_stream(self, max_body_bytes: int) -> AsyncIterator[bytes]:
        announced = self.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > max_body_bytes:
            raise TooLarge(f"body: has {announced} bytes, more than the {max_body_bytes} that are accepted")
        received = 0
        async for chunk in self.stream():
            received += len(chunk)
            if received > max_body_bytes:
                raise TooLarge(f"body: has more than the {max_body_bytes} bytes that are accepted")
            yield chunk


def _check_single(form: FormData) -> None:
    repeated = [name for name, count in Counter(name for name, _ in form.multi_items()).items() if count > 1]
    if repeated:
        raise InvalidRequest(f"{repeated[0]}: is given {len(form.getlist(repeated[0]))} times")


def form_route(
    limits: Limits, max_file_bytes: Mapping[str, int], body_timeout_s: Callable[[], float]
) -> type[APIRoute]:
    """Returns the class for routes that take a form; a form too large or too slow raises the service's own error.

    Args:
        limits: limits on the body and on text fields.
        max_file_bytes: limit on each file that the routes read, by the name of its field.
        body_timeout_s: returns how many seconds the body may take to arrive.
    """

    class FormRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def read_and_handle(request: Request) -> Response:
                form_request = FormRequest(request.scope, request.receive)
                timing = context_of(form_request).timing
                try:
                    with span("parse"), timing.measure("parse"):
                        async with asyncio.timeout(body_timeout_s()):
                            await form_request.read_form(limits, max_file_bytes)
                except TimeoutError as error:
                    raise BodyTimeout(f"body: did not arrive within {body_timeout_s():g} s") from error
                return await handle(form_request)

            return read_and_handle

    return FormRoute


def parse_prompt(
    fields: dict[str, str | None], multimask_output: bool, normalize_coords: bool, limits: Limits
) -> Prompt:
    """Builds a Prompt from the JSON text of its fields; an empty field or `null` counts as not given.

    Args:
        fields: the text of point_coords, point_labels, box and mask_input.
        multimask_output: see Prompt.
        normalize_coords: see Prompt.
        limits: how many points and objects are accepted.

    Raises:
        InvalidPrompt: a field is not JSON, or not what Prompt accepts.
        TooLarge: there are too many points or objects.
    """
    _check_text_sizes(fields, limits)
    arrays = {name: _parse_json(name, fields.get(name)) for name in PROMPT_FIELDS}
    return Prompt(
        point_coords=arrays["point_coords"],
        point_labels=arrays["point_labels"],
        box=arrays["box"],
        mask_input=arrays["mask_input"],
        multimask_output=multimask_output,
        normalize_coords=normalize_coords,
    )


def form_of(options: type[T]) -> Callable[..., T]:
    """Returns a FastAPI dependency that reads a dataclass from a form.

    Args:
        options: the dataclass; each field's metadata give its `range` and `description`.
    """

    def read(**values: Any) -> T:
        return options(**values)

    parameters = []
    for option in dataclasses.fields(options):  # type: ignore[arg-type]
        low, high = option.metadata["range"]
        text = Form(description=option.metadata["description"], ge=low, le=high)
        parameters.append(
            Parameter(
                option.name, Parameter.KEYWORD_ONLY, default=option.default, annotation=Annotated[option.type, text]
            )
        )
    read.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return read


def _check_text_sizes(fields: dict[str, str | None], limits: Limits) -> None:
    """Rejects, before parsing, text too long for the limits: a parsed list takes many times the memory of its text.

    Raises:
        TooLarge: the field holds more points or objects than the limits allow.
    """
    longest = POINT_TEXT_BYTES * (limits.max_points + limits.max_objects)
    for name in PROMPT_FIELDS[:3]:
        if len(fields.get(name) or "") > longest:
            raise TooLarge(f"{name}: has more than the {longest} characters that {limits.max_points} points can need")
    most_rows = limits.max_objects * 3 * (LOW_RES_SIZE + 2)
    if (fields.get("mask_input") or "").count("[") > most_rows:
        raise TooLarge(f"mask_input: has more rows than the masks of {limits.max_objects} objects")


def _parse_json(name: str, text: str | None) -> list[Any] | None:
    if text is None or not text.strip():
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        hint = "; NaN and Infinity are not JSON" if any(word in text for word in ("NaN", "Infinity")) else ""
        raise InvalidPrompt(f"{name}: is not valid JSON: {error.msg} at character {error.pos}{hint}") from error
    if value is not None and not isinstance(value, list):
        raise InvalidPrompt(f"{name}: must be a JSON array, is {type(value).__name__}")
    # Checked before numpy, which would turn a long string among many numbers into an array of strings of that length.
    if value is not None and not NUMBERS_ONLY.fullmatch(text):
        raise InvalidPrompt(f"{name}: must hold numbers only")
    return value
