"""Reads multipart bodies within limits, also those that are written in an unusual way."""

import re
from collections.abc import AsyncIterator, Mapping

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from deployments.errors import InvalidRequest, TooLarge
from deployments.parsing.http.upload_budget import IN_MEMORY_BYTES, Upload
from deployments.settings import Limits

# No route takes more; a client that sends thousands of fields is not talking to this service.
MAX_FIELDS = 64

# The names are those of Python's codecs; latin-1 is Starlette's substitute for a charset that it does not know.
CHARSETS = {"utf-8", "ascii", "iso8859-1", "latin-1"}

MOST_PADDING = 1000
"""Bytes of white space after a boundary; it is what some gateways pad lines with."""

PADDING = re.compile(rb"[ \t]*")
QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
EXTENDED_FILENAME = re.compile(rb";[ \t]*filename\*", re.IGNORECASE)


class UsualForm:
    """Rewrites a multipart body that arrives in pieces, so that python-multipart reads all that RFC 2046 allows.

    It drops what stands before the first boundary and after the last one (RFC 2046, 5.1.1: preamble and epilogue), and
    white space after a boundary; and it joins a part's header that goes on in further lines (RFC 5322, 2.2.3). The
    content of parts stays as it is.

    Args:
        boundary: the boundary that Content-Type names.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # The first boundary needs no line before it.
        self._data = b"\r\n"
        self._at = 0
        self._step = self._find_delimiter
        self._in_part = False

    def feed(self, data: bytes) -> bytes:
        """Takes some of the body, and returns what can be passed on by now."""
        self._data, self._at = self._data[self._at :] + data, 0
        out = bytearray()
        while self._step(out):
            pass
        return bytes(out)

    # Each step goes on in the data, and returns whether another one can before more data arrive.

    def _find_delimiter(self, out: bytearray) -> bool:
        found = self._data.find(self._delimiter, self._at)
        # The end of the data may be the beginning of a delimiter.
        until = found if found >= 0 else max(self._at, len(self._data) - len(self._delimiter) + 1)
        self._pass_on(until, out)
        if found < 0:
            return False
        self._at += len(self._delimiter)
        self._step = self._read_end_of_delimiter
        return True

    def _read_end_of_delimiter(self, out: bytearray) -> bool:
        match = PADDING.match(self._data, self._at)
        assert match is not None
        end = match.end()
        if len(self._data) < end + 2 and end - self._at < MOST_PADDING:
            return False
        self._step = self._find_delimiter
        if self._data.startswith(b"\r\n", end):
            out += self._delimiter + b"\r\n"
            self._at, self._in_part, self._step = end + 2, True, self._begin_header
        elif self._data.startswith(b"--", self._at):
            out += self._delimiter + b"--\r\n"
            self._step = self._drop
        elif self._in_part:
            # A line that only begins like the delimiter.
            out += self._delimiter
        return True

    def _begin_header(self, out: bytearray) -> bool:
        # Of the two bytes that would end the headers, one may have arrived.
        if len(self._data) < self._at + 2:
            return False
        self._step = self._read_header
        if self._data.startswith(b"\r\n", self._at):
            self._pass_on(self._at + 2, out)
            self._step = self._find_delimiter
        return True

    def _read_header(self, out: bytearray) -> bool:
        end = self._data.find(b"\r\n", self._at)
        if end < 0:
            self._pass_on(len(self._data) - self._data.endswith(b"\r"), out)
            return False
        self._pass_on(end, out)
        if len(self._data) < end + 3:
            return False
        if self._data[end + 2] in b" \t":
            # The header goes on: only its line ends here.
            self._at = end + 2
        else:
            self._pass_on(end + 2, out)
            self._step = self._begin_header
        return True

    def _drop(self, out: bytearray) -> bool:
        self._at = len(self._data)
        return False

    def _pass_on(self, until: int, out: bytearray) -> None:
        if self._in_part:
            out += self._data[self._at : until]
        self._at = until


class LimitedMultiPartParser(MultiPartParser):
    """Starlette's parser, which here also limits the size of file parts and names the field that is too large.

    Attributes:
        max_field_bytes: limit on a text field.
        max_file_bytes: limits on files, by the names of their fields.
        upload: counts what the body holds.
        ended: whether the closing boundary was read.
    """

    max_field_bytes = 0
    max_file_bytes: Mapping[str, int] = {}
    upload: Upload
    ended = False

    spool_max_size = IN_MEMORY_BYTES

    def on_part_begin(self) -> None:
        """Rejects charsets whose decoders are slow or surprising: punycode, for one, takes quadratic time."""
        if self._charset not in CHARSETS:
            raise InvalidRequest(f"Content-Type: charset {self._charset} is not supported; use utf-8")
        super().on_part_begin()

    def on_headers_finished(self) -> None:
        """Takes a part that has only `filename*` for a file, as one with `filename`; the name itself is of no use."""
        part = self._current_part
        disposition = part.content_disposition or b""
        _, options = parse_options_header(disposition)
        if b"filename" not in options and EXTENDED_FILENAME.search(QUOTED.sub(b"", disposition)):
            part.content_disposition = disposition + b'; filename="unnamed"'
        super().on_headers_finished()

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
        if part.file is None:
            self.upload.text.add(end - start)
        else:
            self.upload.add_to_file(size, end - start)
        super().on_part_data(data, start, end)

    def _unwritten_bytes(self) -> int:
        return sum(len(data) for part, data in self._file_parts_to_write if part is self._current_part)


async def read_multipart(
    headers: Headers,
    stream: AsyncIterator[bytes],
    limits: Limits,
    max_file_bytes: Mapping[str, int],
    upload: Upload,
) -> FormData:
    """Reads a multipart body; large files go to disk.

    Args:
        headers: the request's headers.
        stream: the body.
        limits: limits on text fields.
        max_file_bytes: limit on each file that the route reads, by the name of its field.
        upload: counts what the body holds.

    Raises:
        InvalidRequest: the body is not well-formed.
        TooLarge: a file or a text field exceeds its limit.
    """
    _, options = parse_options_header(headers["content-type"])
    parser = LimitedMultiPartParser(
        headers,
        _in_usual_form(stream, options.get(b"boundary", b"")),  # type: ignore[arg-type]
        max_files=MAX_FIELDS,
        max_fields=MAX_FIELDS,
        max_part_size=limits.max_form_field_bytes,
    )
    parser.max_field_bytes, parser.max_file_bytes = limits.max_form_field_bytes, max_file_bytes
    parser.upload = upload
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"body: is not well-formed multipart/form-data: {error.message}") from error
    except ValueError as error:
        raise InvalidRequest(f"Content-Type: names a charset that cannot be looked up: {error}") from error
    if not parser.ended:
        raise InvalidRequest("body: is not well-formed multipart/form-data: its closing boundary is missing")
    return form


async def _in_usual_form(stream: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[bytes]:
    usual = UsualForm(boundary)
    async for data in stream:
        yield usual.feed(data)
