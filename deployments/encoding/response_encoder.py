"""ResponseEncoder, the CPU deployment: turns low-resolution logits into the bytes of an answer."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from deployments.encoding import (
    coco,
    cvat,
    davis,
    frame_lines,
    geotiff,
    json_text,
    labelme,
    labelstudio,
    napari,
    npz,
    png,
    polygons,
    qupath,
    rle,
    yolo,
)
from deployments.messages.answer_format import AnswerFormat, ResponseFormat, TrackFormat
from deployments.messages.pieces import Piece, Text
from deployments.messages.track import FrameMasks

WRITERS: dict[ResponseFormat, Callable[[Any, AnswerFormat], bytes]] = {
    "json": json_text.write,
    "rle": rle.write,
    "polygons": polygons.write,
    "png": png.write,
    "npz": npz.write,
    "coco": coco.write,
    "coco_rle": coco.write_rle,
    "coco_results": coco.write_results,
    "cvat": cvat.write,
    "labelstudio": labelstudio.write,
    "labelstudio_polygons": labelstudio.write_polygons,
    "labelme": labelme.write,
    "labelme_polygons": labelme.write_polygons,
    "yolo": yolo.write,
    "qupath": qupath.write,
    "davis": davis.write,
    "napari": napari.write,
    "geotiff": geotiff.write,
}
"""The function that writes a piece in each format: a Band if the format is cut by rows, else a Part."""


class ResponseEncoder:
    """Writes answers piece by piece. Stateless: if a replica dies, its pieces are requested again from another."""

    async def encode(self, piece: Piece, answer_format: AnswerFormat) -> Text:
        """Writes a piece of an answer; returns the bytes of its text as a uint8 array."""
        text = await asyncio.to_thread(encode_piece, piece, answer_format)
        return np.frombuffer(text, np.uint8)

    async def encode_frame(self, masks: FrameMasks, track_format: TrackFormat) -> Text:
        """Writes the masks of a video's frame; returns the bytes as a uint8 array."""
        text = await asyncio.to_thread(frame_lines.write, masks, track_format)
        return np.frombuffer(text, np.uint8)


def encode_piece(piece: Piece, answer_format: AnswerFormat) -> bytes:
    """Writes a piece of an answer; returns the bytes of its text."""
    return WRITERS[answer_format.response_format](piece, answer_format)
