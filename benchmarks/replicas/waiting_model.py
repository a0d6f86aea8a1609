"""A model that only waits: measures the serving path (proxy, parser, router, encoder), not SAM.

The rest of the graph is the project's own: deployments.app builds it, with its own options.
"""

import asyncio
from typing import Any
from unittest.mock import patch

import numpy as np
from ray import serve
from ray.serve import Application

from deployments import app
from deployments.messages.calls import ModelAnswer, ModelCall
from deployments.messages.segmentation import Segmentation, sorted_segmentation
from deployments.model_status import StatusReporter
from deployments.settings import ModelSettings

WAIT_S = 1.0
IMAGE_SIZE = (64, 64)


class WaitingModel:
    """Stands where Sam2Model stands; like its engine, each replica's wait is for one request at a time."""

    def __init__(self, settings: ModelSettings) -> None:
        self._engine = asyncio.Lock()
        self._model_id = settings.model_id
        StatusReporter(serve.get_replica_context().replica_tag, settings.model_id).ready()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes what Sam2Model takes; nothing of it matters here."""

    async def wait_until_ready(self) -> None:
        """Returns at once."""

    # ---- Sam2Model's contract with deployments/parsing/model_calls.py: ADAPT HERE when it changes.

    async def ask(self, call: ModelCall[Segmentation], *_: Any, **__: Any) -> ModelAnswer[Segmentation]:
        """Waits as long as an engine might take, and answers one small mask; never asks for the pixels."""
        async with self._engine:
            await asyncio.sleep(WAIT_S)
        return ModelAnswer(small_segmentation(call.image_id, self._model_id), "hit", 0.0, WAIT_S)


def small_segmentation(image_id: str, model_id: str) -> Segmentation:
    """One mask of a small image, all zeros: its text is short and quickly written."""
    logits = np.zeros((1, 1, 256, 256), np.float32)
    return sorted_segmentation(image_id, model_id, IMAGE_SIZE, logits, np.ones((1, 1), np.float32), False)


def build(args: dict[str, Any]) -> Application:
    """The project's application with WaitingModel in Sam2Model's place."""
    with patch.object(app, "Sam2Model", WaitingModel):
        return app.build(args)
