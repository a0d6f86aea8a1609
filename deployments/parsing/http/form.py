"""Reads forms: multipart, urlencoded and JSON bodies become the same form; and a Prompt from the JSON in its fields."""

import asyncio
import dataclasses
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from inspect import Parameter, Signature
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Form
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import BodyTimeout, InvalidPrompt, InvalidRequest, TooLarge, UnsupportedMediaType
from deployments.messages.arrays import LOW_RES_SIZE
from deployments.messages.prompt import Prompt
from deployments.parsing.http.field_names import check_names
from deployments.parsing.http.json_body import read_json
from deployments.parsing.http.multipart_body import read_multipart
from deployments.parsing.http.request_coding import unpacked
from deployments.parsing.http.request_context import context_of
from deployments.parsing.http.slow_bodies import SLOW_BYTES_PER_S, Arrival
from deployments.parsing.http.upload_budget import Upload, UploadBudgets
from deployments.parsing.http.urlencoded_body import read_urlencoded
from deployments.settings import Limits
from deployments.telemetry.tracing import span

T = TypeVar("T")

PROMPT_FIELDS = ("point_coords", "point_labels", "box", "mask_input")

# The longest sensible JSON text of one point, `[x,y],` with two float64 at full length, rounded up.
POINT_TEXT_BYTES = 64

MULTIPART, URLENCODED, JSON = BODY_KINDS = (
    "multipart/form-data",
    "application/x-www-form-urlencoded",
    "application/json",
)

NUMBERS_ONLY = re.compile(r"[\s\d\[\],.eE+-]*")


# The fields that name what a file may be given in place of.
ID_FIELDS = ("image_id", "video_id")


class FormRequest(Request):
    """A request whose form this module has read and stored in `_form`, where FastAPI finds it and reads no more."""

    async def read_form(
        self,
        limits: Limits,
        max_file_bytes: Mapping[str, int],
        max_multipart_bytes: int,
        fields: Collection[str],
        upload: Upload,
        arrival: Arrival,
    ) -> None:
        """Reads the body within the limits, whichever of the three kinds it is, into a form.

        Args:
            limits: limits on the body and on text fields.
            max_file_bytes: limit on each file that the route reads, by the name of its field.
            max_multipart_bytes: limit on a multipart body, whose files go to disk while they arrive.
            fields: the names of the route's fields.
            upload: counts what the body holds, and lets it wait for room.
            arrival: counts what arrives, and has the clock for it.

        Raises:
            Overloaded: all bodies together hold too much.
            UnsupportedMediaType: the body's type, or its coding, is another one.
            InvalidRequest: the body is not well-formed, or a field is given twice, or misspelt.
            TooLarge: the body, a file or a text field exceeds its limit.
        """
        content_type = self.headers.get("content-type", "")
        kind = content_type.split(";")[0].strip().lower()
        if kind not in BODY_KINDS:
            raise UnsupportedMediaType(
                f"Content-Type: must be {', '.join(BODY_KINDS[:-1])} or {BODY_KINDS[-1]}, "
                f"is {content_type[:200] or 'missing'!r}"
            )
        max_bytes = max_multipart_bytes if kind == MULTIPART else limits.max_body_bytes
        stream = upload.in_turn(self._limited_stream(max_bytes), arrival)
        if kind == MULTIPART:
            form = await read_multipart(self.headers, stream, limits, max_file_bytes, upload)
        elif kind == URLENCODED:
            form = await read_urlencoded(stream, limits, upload)
        else:
            form = await read_json(stream, limits, max_file_bytes, upload)
        try:
            check_names(form, self.query_params, fields)
            _check_single(form)
        except InvalidRequest:
            await form.close()
            raise
        self._form = _without_empty_files(form)

    async def _limited_stream(self, max_bytes: int) -> AsyncIterator[bytes]:
        """Yields the body, unpacked; what arrives and what it is unpacked to have the same limit."""
        too_large = TooLarge(f"body: has more than the {max_bytes} bytes that are accepted")
        announced = self.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > max_bytes:
            raise TooLarge(f"body: has {announced} bytes, more than the {max_bytes} that are accepted")
        packed = self._packed_stream(max_bytes, too_large)
        received = 0
        async for data in unpacked(packed, self.headers.get("content-encoding", "")):
            received += len(data)
            if received > max_bytes:
                raise too_large
            yield data

    async def _packed_stream(self, max_bytes: int, too_large: TooLarge) -> AsyncIterator[bytes]:
        received = 0
        async for data in self.stream():
            received += len(data)
            if received > max_bytes:
                raise too_large
            yield data
        if not received:
            self._check_upgrade()

    def _check_upgrade(self) -> None:
        """Rejects a request whose body the HTTP server has dropped, since it may do so where a client asks for HTTP/2.

        The service's own servers do not (http_server.py); others that run the application may.
        """
        has_body = self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers
        if "upgrade" in self.headers and has_body:
            raise InvalidRequest(
                f"Upgrade: {self.headers['upgrade'][:100]!r} is not supported, and the body was lost with it; send the "
                "request again as plain HTTP/1.1, without this header"
            )


def _check_single(form: FormData) -> None:
    repeated = [name for name, count in Counter(name for name, _ in form.multi_items()).items() if count > 1]
    if repeated:
        raise InvalidRequest(f"{repeated[0]}: is given {len(form.getlist(repeated[0]))} times")


def _without_empty_files(form: FormData) -> FormData:
    """Drops files without content if an id says what they would: some clients always send the part."""
    if not any(form.get(name) for name in ID_FIELDS):
        return form
    return FormData([(name, value) for name, value in form.multi_items() if isinstance(value, str) or value.size != 0])


def _field_names(dependant: Dependant) -> set[str]:
    """Returns the names of a route's form fields, those of what it depends on included."""
    names = {field.alias for field in dependant.body_params}
    return names.union(*map(_field_names, dependant.dependencies))


def form_route(
    limits: Limits,
    max_file_bytes: Mapping[str, int],
    body_timeout_s: Callable[[], float],
    uploads: UploadBudgets,
    max_multipart_bytes: int | None = None,
) -> type[APIRoute]:
    """Returns the class for routes that take a form; a form too large or too slow raises the service's own error.

    Args:
        limits: limits on the body and on text fields.
        max_file_bytes: limit on each file that the routes read, by the name of its field.
        body_timeout_s: returns how many seconds the body may take to arrive.
        uploads: what all bodies may hold together.
        max_multipart_bytes: limit on a multipart body, if it is not that on any body.
    """
    most = limits.max_body_bytes if max_multipart_bytes is None else max_multipart_bytes

    class FormRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            fields = _field_names(self.dependant)

            async def read_and_handle(request: Request) -> Response:
                form_request = FormRequest(request.scope, request.receive)
                # Until the answer is sent: FastAPI keeps the form for so long, and closes its files in this stack.
                upload = request.scope["fastapi_middleware_astack"].enter_context(uploads.share())
                timing = context_of(form_request).timing
                try:
                    with span("parse"), timing.measure("parse"):
                        async with asyncio.timeout(body_timeout_s()) as clock:
                            with uploads.slow.arrival(clock) as arrival:
                                await form_request.read_form(limits, max_file_bytes, most, fields, upload, arrival)
                except TimeoutError as error:
                    raise BodyTimeout(_late(arrival, body_timeout_s())) from error
                return await handle(form_request)

            return read_and_handle

    return FormRoute


def _late(arrival: Arrival, timeout_s: float) -> str:
    if arrival.was_ended:
        return f"body: came at less than {SLOW_BYTES_PER_S} bytes/s while very many others were arriving; send it later"
    return f"body: did not arrive within {timeout_s:g} s"


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
