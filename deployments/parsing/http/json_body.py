"""Reads JSON bodies into the texts that a form would have: values stay text, and are parsed where a form's are."""

import asyncio
import binascii
import re
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from tempfile import SpooledTemporaryFile
from typing import Any

import orjson
from starlette.datastructures import FormData, UploadFile

from deployments.errors import InvalidRequest, TooLarge
from deployments.parsing.http.multipart_body import MAX_FIELDS
from deployments.parsing.http.upload_budget import IN_MEMORY_BYTES, Held, Upload
from deployments.settings import Limits

# Longer names and numbers have no meaning here.
MOST_NAME_BYTES = MOST_NUMBER_BYTES = 1000

# Brackets and texts inside of fields, each of which takes a step in Python. The masks of 256 objects have 200,000 rows.
MOST_PARTS = 1_000_000

# Smaller pieces are not worth a thread.
IN_LOOP_BYTES = 2**13

WHITE_SPACE = re.compile(rb"[ \t\r\n]*")
# All up to the closing quote. Possessive: a long text takes no memory for going back.
TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
STRUCTURE = re.compile(rb'["\[\]{}]')
SCALAR = re.compile(rb"[-+.\w]*")

UNFINISHED_ESCAPE = re.compile(rb"\\u[0-9a-fA-F]{0,3}$")
DATA_URL = re.compile(rb"data:[^,]*;base64,")
MOST_DATA_URL_BYTES = 300
FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Steps = Generator[None, None, None]


class Base64File:
    """A file that arrives in pieces of a JSON text: as base64, alone or as a `data:` URL. A large one goes to disk.

    Args:
        name: the field's name.
        limit: how many bytes the file may have.
        upload: counts them.
    """

    def __init__(self, name: str, limit: int, upload: Upload) -> None:
        self._name = name
        self._limit = limit
        self._upload = upload
        self._file: Any = SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115
        self._size = 0
        self._escape = b""
        self._digits = b""
        self._has_begun = False

    def write(self, piece: bytes) -> None:
        """Takes some of the text, as it stands between the quotes.

        Raises:
            InvalidRequest: it is not base64.
            TooLarge: the file is larger than its limit.
        """
        piece = self._escape + piece
        unfinished = UNFINISHED_ESCAPE.search(piece)
        self._escape = b"" if unfinished is None else unfinished[0]
        text = self._unescaped(piece[: len(piece) - len(self._escape)])
        self._digits += text.translate(FROM_URL_SAFE, b" \t\r\n")
        if self._has_begun or len(self._digits) > MOST_DATA_URL_BYTES:
            # The last ones wait: only at the end may four digits stand for fewer than three bytes.
            self._decode(len(self._digits) - 4)

    def upload(self) -> UploadFile | None:
        """Returns the file, or None if the text was empty; raises as `write` does."""
        if self._escape:
            raise self._refusal()
        self._begin()
        # Some clients leave out the signs that only fill up.
        self._digits += b"=" * (-len(self._digits) % 4)
        self._decode(len(self._digits))
        self._file.seek(0)
        return UploadFile(self._file, size=self._size, filename=self._name) if self._size else None

    def close(self) -> None:
        """Drops the file."""
        self._file.close()

    def _unescaped(self, piece: bytes) -> bytes:
        if b"\\" not in piece:
            return piece
        try:
            return str(orjson.loads(b'"' + piece + b'"')).encode()
        except orjson.JSONDecodeError as error:
            raise self._refusal() from error

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._digits = DATA_URL.sub(b"", self._digits, count=1)

    def _decode(self, most: int) -> None:
        self._begin()
        whole = max(0, min(most, len(self._digits))) // 4 * 4
        digits, self._digits = self._digits[:whole], self._digits[whole:]
        try:
            content = binascii.a2b_base64(digits, strict_mode=True)
        except binascii.Error as error:
            raise self._refusal() from error
        if self._digits and b"=" in digits:
            raise self._refusal()
        if self._size + len(content) > self._limit:
            raise TooLarge(f"{self._name}: has more than the {self._limit} bytes that are accepted")
        self._upload.add_to_file(self._size, len(content))
        self._size += len(content)
        self._file.write(content)

    def _refusal(self) -> InvalidRequest:
        return InvalidRequest(f"{self._name}: must be the file itself as base64, alone or as a data: URL")


class JsonBody:
    """Splits a JSON object, which arrives in pieces, into the texts of its values.

    A text becomes what it says; a number, `true`, `false`, an array or an object stays as it is written. `null` counts
    as not given. Whether an array holds what it should is for the field to say, as with a form.

    Args:
        limits: limits on text fields.
        max_file_bytes: limit on each file that the route reads, by the name of its field.
        upload: counts what the body holds.
    """

    def __init__(self, limits: Limits, max_file_bytes: Mapping[str, int], upload: Upload) -> None:
        self._upload = upload
        self._max_field_bytes = limits.max_form_field_bytes
        self._max_file_bytes = max_file_bytes
        self._texts: list[tuple[str, bytearray, bool]] = []
        self._files: list[tuple[str, Base64File]] = []
        self._data = b""
        self._at = 0
        self._parts = 0
        self._has_ended = False
        self._steps = self._document()
        # To the first point at which data are needed.
        next(self._steps)

    def feed(self, data: bytes) -> None:
        """Takes some of the body.

        Raises:
            InvalidRequest: the body is not a JSON object, or a file is not base64.
            TooLarge: a value exceeds its limit.
        """
        self._data, self._at = self._data[self._at :] + data, 0
        next(self._steps)

    def form(self) -> FormData:
        """Returns what has arrived, as the form that it stands for.

        Raises:
            InvalidRequest: the body is not a JSON object, or cut off.
        """
        if not self._has_ended:
            raise self._refusal("it ends too early")
        items: list[tuple[str, str | UploadFile]] = []
        for name, raw, is_quoted in self._texts:
            value = _loaded(name, b'"' + raw + b'"') if is_quoted else raw.decode("utf-8", "surrogateescape")
            items.append((name, value))
        for name, file in self._files:
            upload = file.upload()
            if upload is not None:
                items.append((name, upload))
        return FormData(items)

    def close(self) -> None:
        """Drops what has arrived."""
        for _, file in self._files:
            file.close()

    # Each of these reads on, and yields where more data are needed.

    def _document(self) -> Steps:
        yield
        while len(self._data) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(self._data):
            yield
        if self._data.startswith(BYTE_ORDER_MARK):
            self._at = len(BYTE_ORDER_MARK)
        yield from self._expect(b"{", "it must be an object")
        yield from self._skip_space()
        if self._next() == b"}":
            self._at += 1
        else:
            yield from self._members()
        self._has_ended = True
        while True:
            self._at = _end(WHITE_SPACE, self._data, self._at)
            if self._at < len(self._data):
                raise self._refusal("something comes after it")
            yield

    def _members(self) -> Steps:
        count = 0
        while True:
            count += 1
            if count > MAX_FIELDS:
                raise InvalidRequest(f"body: has more than {MAX_FIELDS} fields")
            yield from self._member()
            yield from self._skip_space()
            self._at += 1
            end = self._data[self._at - 1 : self._at]
            if end == b"}":
                return
            if end != b",":
                raise self._refusal("a comma or the closing brace is missing")

    def _member(self) -> Steps:
        raw = bytearray()
        yield from self._expect(b'"', "a name in quotes is missing")
        yield from self._text(_collect(raw, MOST_NAME_BYTES, "body: a name", self._upload.text))
        name = str(_loaded("body", b'"' + raw + b'"'))
        yield from self._expect(b":", "a colon is missing")
        yield from self._skip_space()
        first = self._next()
        is_file = name in self._max_file_bytes
        if first == b'"' and is_file:
            self._at += 1
            file = Base64File(name, self._max_file_bytes[name], self._upload)
            self._files.append((name, file))
            yield from self._text(file.write)
            return
        value = bytearray()
        collect = _collect(value, self._max_field_bytes, f"{name}:", self._upload.text)
        if first == b'"':
            self._at += 1
            yield from self._text(collect)
        elif first in (b"[", b"{"):
            yield from self._nested(name, collect)
        else:
            yield from self._scalar(name, value)
        if first != b'"' and value == b"null":
            return
        if is_file:
            raise InvalidRequest(f"{name}: must be text in JSON, the file as base64")
        self._texts.append((name, value, first == b'"'))

    def _text(self, take: Callable[[bytes], None]) -> Steps:
        """Reads up to and with the closing quote; passes on what stands before it."""
        while True:
            end = _end(TEXT, self._data, self._at)
            take(self._data[self._at : end])
            self._at = end
            if self._next() == b'"':
                self._at += 1
                return
            # Here are the end of the data, or a backslash whose character has not arrived.
            yield

    def _nested(self, name: str, take: Callable[[bytes], None]) -> Steps:
        """Reads an array or an object, in which only texts and brackets are told apart."""
        depth = 0
        while True:
            begin = self._at
            for found in STRUCTURE.finditer(self._data, begin):
                self._at = found.end()
                self._count_part(name)
                if found[0] == b'"':
                    break
                depth += 1 if found[0] in b"[{" else -1
                if depth == 0:
                    take(self._data[begin : self._at])
                    return
            else:
                take(self._data[begin:])
                self._at = len(self._data)
                yield
                continue
            take(self._data[begin : self._at])
            yield from self._text(take)
            take(b'"')

    def _count_part(self, name: str) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise TooLarge(f"{name}: has too many brackets and texts; a body may have {MOST_PARTS}")

    def _scalar(self, name: str, value: bytearray) -> Steps:
        while True:
            end = _end(SCALAR, self._data, self._at)
            value += self._data[self._at : end]
            self._at = end
            if len(value) > MOST_NUMBER_BYTES:
                raise InvalidRequest(f"{name}: is not valid JSON: it is neither in quotes nor a number")
            if end < len(self._data):
                break
            yield
        _loaded(name, value)

    def _expect(self, sign: bytes, fault: str) -> Steps:
        yield from self._skip_space()
        if self._next() != sign:
            raise self._refusal(fault)
        self._at += 1

    def _skip_space(self) -> Steps:
        while True:
            self._at = _end(WHITE_SPACE, self._data, self._at)
            if self._at < len(self._data):
                return
            yield

    def _next(self) -> bytes:
        return self._data[self._at : self._at + 1]

    def _refusal(self, fault: str) -> InvalidRequest:
        return InvalidRequest(f"body: is not valid JSON: {fault}")


async def read_json(
    stream: AsyncIterator[bytes], limits: Limits, max_file_bytes: Mapping[str, int], upload: Upload
) -> FormData:
    """Reads a JSON body into the form that it stands for. What is large is read in threads.

    Args:
        stream: the body.
        limits: limits on text fields.
        max_file_bytes: limit on each file that the route reads, by the name of its field.
        upload: counts what the body holds.

    Raises:
        InvalidRequest: the body is not a JSON object, or a file is not base64.
        TooLarge: a value exceeds its limit.
    """
    body, size = JsonBody(limits, max_file_bytes, upload), 0
    try:
        async for data in stream:
            size += len(data)
            if len(data) > IN_LOOP_BYTES:
                await asyncio.to_thread(body.feed, data)
            else:
                body.feed(data)
        return await asyncio.to_thread(body.form) if size > IN_LOOP_BYTES else body.form()
    except BaseException:
        body.close()
        raise


def _collect(value: bytearray, limit: int, what: str, held: Held) -> Callable[[bytes], None]:
    def take(piece: bytes) -> None:
        if len(value) + len(piece) > limit:
            raise TooLarge(f"{what} has more than the {limit} bytes that are accepted")
        held.add(len(piece))
        value.extend(piece)

    return take


def _loaded(name: str, raw: bytes | bytearray) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        hint = "; NaN and Infinity are not JSON" if any(word in raw for word in (b"NaN", b"Infinity")) else ""
        raise InvalidRequest(f"{name}: is not valid JSON: {error.msg}{hint}") from error


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Returns where a pattern, which may match nothing, ends."""
    match = pattern.match(data, at)
    assert match is not None
    return match.end()
