"""Reads urlencoded bodies, which `requests` and `httpx` send for `data=` where there is no file."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import unquote_to_bytes

from starlette.datastructures import FormData

from deployments.errors import InvalidRequest, TooLarge
from deployments.parsing.http.json_body import IN_LOOP_BYTES, MOST_NAME_BYTES
from deployments.parsing.http.multipart_body import MAX_FIELDS
from deployments.parsing.http.upload_budget import Upload
from deployments.settings import Limits

# A byte may be written as `%5B`.
MOST_BYTES_PER_BYTE = 3


async def read_urlencoded(stream: AsyncIterator[bytes], limits: Limits, upload: Upload) -> FormData:
    """Reads an urlencoded body. A large one is read in a thread.

    Args:
        stream: the body.
        limits: limits on text fields.
        upload: counts what the body holds.

    Raises:
        InvalidRequest: there are too many fields.
        TooLarge: a field exceeds its limit.
    """
    body = bytearray()
    async for data in stream:
        body += data
        upload.text.add(len(data))
    if len(body) > IN_LOOP_BYTES:
        return await asyncio.to_thread(_parsed, bytes(body), limits.max_form_field_bytes)
    return _parsed(bytes(body), limits.max_form_field_bytes)


def _parsed(body: bytes, max_field_bytes: int) -> FormData:
    fields = body.strip().split(b"&", MAX_FIELDS)
    if len(fields) > MAX_FIELDS:
        raise InvalidRequest(f"body: has more than {MAX_FIELDS} fields")
    return FormData([_field(field, max_field_bytes) for field in fields if field])


def _field(field: bytes, max_bytes: int) -> tuple[str, str]:
    raw_name, _, raw = field.partition(b"=")
    name = _decoded(raw_name[:MOST_NAME_BYTES]).decode("utf-8", "replace")
    too_large = TooLarge(f"{name}: has more than the {max_bytes} bytes that are accepted")
    if len(raw) > max_bytes * MOST_BYTES_PER_BYTE:
        raise too_large
    value = _decoded(raw)
    if len(value) > max_bytes:
        raise too_large
    try:
        return name, value.decode()
    except UnicodeDecodeError:
        # As multipart forms are read.
        return name, value.decode("latin-1")


def _decoded(raw: bytes) -> bytes:
    return unquote_to_bytes(raw.replace(b"+", b" "))
