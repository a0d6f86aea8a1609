"""ResponseEncoder, the CPU deployment: from low-resolution logits to the bytes of an answer."""

import asyncio
from functools import partial

import numpy as np

from deployments.encoding import json_text, npz, png, polygons, records, rle
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.everything import AutomaticMasks
from deployments.messages.pieces import Band, Part, Text


class ResponseEncoder:
    """Writes answers piece by piece. Stateless: a piece that was lost with its replica is simply asked for again."""

    async def encode_band(self, band: Band, return_logits: bool) -> Text:
        """Some rows of the default JSON answer; see `json_text.encode_band`."""
        text = await asyncio.to_thread(json_text.encode_band, band, return_logits)
        return np.frombuffer(text, np.uint8)

    async def encode_part(self, part: Part, form: AnswerFormat) -> Text:
        """Some objects of an answer in another format."""
        text = await asyncio.to_thread(encode_part, part, form)
        return np.frombuffer(text, np.uint8)


def encode_part(part: Part, form: AnswerFormat) -> bytes:
    """The bytes of a part, in any format but `json`."""
    match form.response_format:
        case "rle":
            return records.encode_part(part, rle.segmentation, form.return_logits)
        case "polygons":
            tolerance = polygons.DEFAULT_TOLERANCE if form.tolerance is None else form.tolerance
            return records.encode_part(part, partial(polygons.segmentation, tolerance=tolerance), form.return_logits)
        case "png" if isinstance(part.masks, AutomaticMasks):
            return png.encode_labels(map(part.masks.mask, range(part.masks.num_masks)), part.masks.image_size)
        case "png":
            return png.encode(part.masks.mask(0))
        case "npz":
            masks = part.masks
            arrays = masks.arrays() | ({"logits": masks.logits} if form.return_logits else {})
            return npz.encode(map(masks.mask, range(masks.num_masks)), masks.masks_shape, arrays)
    raise AssertionError(f"{form.response_format} is written in bands")
