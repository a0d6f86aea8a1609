"""Forms as clients send them, byte by byte where need be."""

import json
from collections.abc import Mapping

import numpy as np

from harness.images import encoded, picture

ROUTE = "/segment-anything-2"
IMAGE = encoded(picture(40, 30))

Part = tuple[str, tuple[str | None, bytes]]
Fields = Mapping[str, str | bytes]

POINT: Fields = {"point_coords": "[[10,10]]", "point_labels": "[1]"}


def text_parts(fields: Fields) -> list[Part]:
    return [(name, (None, text if isinstance(text, bytes) else text.encode())) for name, text in fields.items()]


def parts(fields: Fields, image: bytes = IMAGE, filename: str = "image.png") -> list[Part]:
    return [("image", (filename, image)), *text_parts(fields)]


def zeros(*shape: int) -> str:
    return json.dumps(np.zeros(shape, int).tolist(), separators=(",", ":"))


BOUNDARY = "frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def body(form: list[Part], end: bytes = b"--frontier--\r\n") -> bytes:
    """A multipart body, byte by byte as clients write it."""
    lines = []
    for name, (filename, content) in form:
        disposition = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
        lines.append(f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n")
    return b"".join(lines) + end


GOOD_BODY = body(parts(POINT))
