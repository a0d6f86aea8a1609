"""ResponseEncoder, the CPU deployment: from low-resolution logits to the text of an answer."""

import asyncio

import numpy as np

from deployments.bands import Band, Text
from deployments.encoding import json_text


class ResponseEncoder:
    """Writes answers band by band. Stateless: a band that was lost with its replica is simply asked for again."""

    async def encode_band(self, band: Band, return_logits: bool) -> Text:
        """Some rows of the default JSON answer; see `json_text.encode_band`."""
        text = await asyncio.to_thread(json_text.encode_band, band, return_logits)
        return np.frombuffer(text, np.uint8)
