"""ResponseEncoder, the CPU deployment: from low-resolution logits to the text of an answer."""

import asyncio

from deployments.encoding import json_text
from deployments.schema import Segmentation


class ResponseEncoder:
    """Writes answers band by band. Stateless: a band that was lost with its replica is simply asked for again."""

    async def encode_band(self, segmentation: Segmentation, start: int, stop: int, return_logits: bool) -> bytes:
        """Rows `start` to `stop` of the default JSON answer; see `json_text.encode_band`."""
        return await asyncio.to_thread(json_text.encode_band, segmentation, start, stop, return_logits)
