"""A model that only waits: measures the serving path (proxy, parser, router, encoder), not SAM.

The rest of the graph is the project's own: deployments.app builds it, with its own options.
"""

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from ray import serve
from ray.serve import Application

from deployments import app
from deployments.messages.calls import ModelAnswer, ModelCall, Wanted
from deployments.messages.segmentation import Segmentation, sorted_segmentation
from deployments.messages.track import (
    FrameMasks,
    FrameMemory,
    ObjectState,
    TrackCall,
    TrackedFrames,
    TrackState,
)
from deployments.messages.video import FrameBatch
from deployments.model_status import StatusReporter
from deployments.settings import ModelSettings

WAIT_S = 1.0
IMAGE_SIZE = (64, 64)

FEATURES = 7
"""Frames of which an object's state has features; of older ones it has pointers only."""


class WaitingModel:
    """Stands where Sam2Model stands; like its engine, each replica's wait is for one request at a time."""

    frame_s = 0.5
    """How long a frame of a video takes."""

    def __init__(self, settings: ModelSettings) -> None:
        self._jobs: dict[str, TrackState] = {}
        self._tag = serve.get_replica_context().replica_tag
        self._engine = asyncio.Lock()
        self._model_id = settings.model_id
        StatusReporter(serve.get_replica_context().replica_tag, settings.model_id).ready("none")

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes what Sam2Model takes; nothing of it matters here."""

    async def wait_until_ready(self) -> None:
        """Returns at once."""

    # ---- Sam2Model's contract with deployments/parsing: ADAPT HERE when it changes.

    async def ask(self, call: ModelCall[Segmentation], *_: Any, **__: Any) -> ModelAnswer[Segmentation]:
        """Waits as long as an engine might take, and answers one small mask; never asks for the pixels."""
        async with self._engine:
            await asyncio.sleep(WAIT_S)
        return ModelAnswer(small_segmentation(call.image_id, self._model_id), "hit", 0.0, WAIT_S)

    async def begin_tracking(self, job: str) -> tuple[str, int]:
        """Takes on a job."""
        self._jobs.setdefault(job, TrackState())
        return self._tag, len(self._jobs) - 1

    async def end_tracking(self, job: str) -> None:
        """Forgets a job."""
        self._jobs.pop(job, None)

    async def track(
        self, call: TrackCall, frames: FrameBatch | None = None, state: TrackState | None = None, _: float = 0.0
    ) -> TrackedFrames | Wanted:
        """Waits for each frame; answers masks and a state of the size that SAM 2's have."""
        if frames is None:
            return Wanted("frames")
        if state is None and not self._jobs.get(call.job, TrackState()).objects and call.position:
            return Wanted("state")
        ids = sorted({prompt.object_id for prompt in call.prompts}) or [
            one.object_id for one in (state or self._jobs[call.job]).objects
        ]
        async with self._engine:
            await asyncio.sleep(self.frame_s * len(call.frames))
        size = frames.pixels[0].shape[0], frames.pixels[0].shape[1]
        self._jobs[call.job] = full_state(ids)
        masks = tuple(full_masks(index, ids, size) for index in frames.indices)
        answered = self._jobs[call.job] if call.wants_state else None
        return TrackedFrames(masks, len(call.frames), answered, others=len(self._jobs) - 1)


class QuickModel(WaitingModel):
    """Waits so little that thousands of frames pass in a minute."""

    frame_s = 0.01


def full_masks(index: int, ids: Sequence[int], size: tuple[int, int]) -> FrameMasks:
    """Masks of one frame, empty ones."""
    count = len(ids)
    logits = np.full((count, 256, 256), -1.0, np.float32)
    return FrameMasks(index, tuple(ids), size, logits, np.ones(count, np.float32), np.ones(count, np.float32))


def full_state(ids: Sequence[int]) -> TrackState:
    """A state as large as SAM 2's once its memory is full: a frame with a prompt, six others, fifteen pointers."""

    def memory(index: int) -> FrameMemory:
        features = np.zeros((64, 64, 64), np.uint16) if index < FEATURES else None
        return FrameMemory(index, np.zeros(256, np.float32), features)

    objects = [ObjectState(one, (memory(0),), tuple(memory(index) for index in range(1, 16))) for one in ids]
    return TrackState(objects=tuple(objects))


def small_segmentation(image_id: str, model_id: str) -> Segmentation:
    """One mask of a small image, all zeros: its text is short and quickly written."""
    logits = np.zeros((1, 1, 256, 256), np.float32)
    return sorted_segmentation(image_id, model_id, IMAGE_SIZE, logits, np.ones((1, 1), np.float32), False)


def build(args: dict[str, Any]) -> Application:
    """The project's application with WaitingModel in Sam2Model's place."""
    with patch.object(app, "Sam2Model", WaitingModel):
        return app.build(args)


def build_quick(args: dict[str, Any]) -> Application:
    """The project's application with QuickModel in Sam2Model's place."""
    with patch.object(app, "Sam2Model", QuickModel):
        return app.build(args)
