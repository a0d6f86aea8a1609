"""Writes CVAT's annotation file, "CVAT for images 1.1": XML with a mask for each object.

A mask is its box and the lengths of its runs inside it, row by row, the first of background.
"""

from xml.sax.saxutils import quoteattr

from deployments.encoding.objects import MaskedObject, objects_of, runs_of
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.pieces import Part


def write(part: Part, answer_format: AnswerFormat) -> bytes:
    """A part of the file."""
    height, width = part.masks.image_size
    opening = (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f'  <image id="0" name={quoteattr(answer_format.shown_file_name)} width="{width}" height="{height}">\n'
    )
    label = quoteattr(answer_format.shown_label)
    elements = "".join(_element(one, label) for one in objects_of(part))
    closing = "  </image>\n</annotations>\n"
    return ((opening if part.is_first else "") + elements + (closing if part.is_last else "")).encode()


def _element(one: MaskedObject, label: str) -> str:
    left, top, width, height = one.bbox
    runs = ", ".join(map(str, runs_of(one.crop).tolist()))
    return (
        f'    <mask label={label} source="auto" occluded="0" rle="{runs}" '
        f'left="{left}" top="{top}" width="{width}" height="{height}" z_order="0"></mask>\n'
    )
