"""Calls models: sends an image's calls to the same replica, wakes models, supplies the data that a replica wants."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from functools import partial
from typing import Any, TypeAlias, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.errors import DeadlineExceeded, ImageNotCached, ModelUnavailable, Overloaded
from deployments.messages.calls import Caller, ModelAnswer, ModelCall, Supplies, Want, Wanted
from deployments.messages.video import affinity
from deployments.model_status import ModelStatus
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_states import LOOK_EVERY_S, ModelStates
from deployments.parsing.retries import Retries, forgotten_by_all
from deployments.settings import RequestParserConfig
from deployments.telemetry.metrics import RequestMetrics

Result = TypeVar("Result")

Sources: TypeAlias = Mapping[Want, Callable[[], Awaitable[Any]]]
"""The data that a request can supply: for each kind, a function that gets it."""

NOT_REMEMBERED: dict[Want, str] = {"pixels": "image_id: {} does not remember this image; upload it (again)"}

logger = logging.getLogger("ray.serve")

AWAKE_FOR_S = 30.0
"""A model that was found awake is taken to be awake for this long, and is not asked again meanwhile."""


class ModelCalls:
    """Calls the models on behalf of RequestParser.

    Args:
        models: a handle for each model id.
        model_states: the state of each model, as the cluster reports it.
        config: time-outs and the number of repeats.
        metrics: counts repeats.
    """

    def __init__(
        self,
        models: dict[str, "DeploymentHandle[Any]"],
        model_states: ModelStates,
        config: RequestParserConfig,
        metrics: RequestMetrics,
    ) -> None:
        self._models = models
        self._model_states = model_states
        self._awake_until: dict[str, float] = {}
        self._background: set[asyncio.Task[None]] = set()
        # A fault does not name the model whose replica died, so every model may be asleep or loading.
        self.retries = Retries(config.max_retries, metrics, on_fault=self._awake_until.clear)
        self.config = config

    def configure(self, config: RequestParserConfig) -> None:
        """Applies new time-outs and a new number of repeats."""
        self.config = config
        self.retries.max_retries = config.max_retries

    async def ask(
        self, model_id: str, call: ModelCall[Result], sources: Sources, deadline: Deadline
    ) -> ModelAnswer[Result]:
        """Asks a model, on the replica that remembers the image if there is one.

        The call is first sent without data. If the replica wants data, the call is sent again with it: a remembered
        image is neither decoded nor transferred.

        Args:
            model_id: a configured model.
            call: the question.
            sources: the data that the request can supply; a function is called only if the replica wants its data.
            deadline: when there must be an answer.

        Raises:
            ImageNotCached: the model does not remember the image, and the request cannot supply its pixels.
            TooLarge: the answer would hold too many numbers.
            ModelUnavailable: the model did not wake up in time, or failed to load.
            Overloaded: the model's queues, or its device's memory, are full.
            DeadlineExceeded: there was no answer in time.
            ServiceError: a source raised it.
        """
        if not sources and await self._is_asleep(model_id):
            # A sleeping model remembers nothing: the answer is known without waking it.
            raise _not_remembered("pixels", model_id)
        await self.wake(model_id, deadline)
        model = self.model(model_id, call.image_id)
        name = uuid.uuid4().hex

        async def send(supplies: Supplies) -> ModelAnswer[Result] | Wanted:
            def ask() -> Any:
                return model.ask.remote(call, supplies, Caller(name, frozenset(sources), deadline.remaining()))

            answer: ModelAnswer[Result] | Wanted = await self.retries.call(ask, deadline, model_id)
            return answer

        if call.needs_pixels and "pixels" in sources:
            # The replica needs the pixels in any case. It is not asked first, so it elects no caller.
            answer = await send(Supplies(await sources["pixels"]()))
        else:
            release = partial(self._give_up_in_background, model, call.image_id, name) if sources else _nothing
            answer = await _in_steps(send, sources, release)
        if isinstance(answer, Wanted):
            raise _not_remembered(answer.what, model_id)
        return answer

    def _give_up_in_background(self, model: "DeploymentHandle[Any]", image_id: str, name: str) -> None:
        """Releases a failed request, which may be elected without knowing: other requests would wait for its pixels."""
        # The task has a context of its own: calls in the request's context may be cancelled.
        task = asyncio.get_running_loop().create_task(_give_up(model, image_id, name), context=Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def forget(self, image_id: str) -> bool:
        """Makes every replica of every model forget an image; returns whether any remembered it. Wakes no model.

        Raises:
            Unavailable: a replica did not answer in time.
        """
        awake = [status.model_id for status in await self._model_states.model_statuses() if status.state != "asleep"]
        return any(await asyncio.gather(*(self._forget(model_id, image_id) for model_id in awake)))

    async def _forget(self, model_id: str, image_id: str) -> bool:
        async def is_gone() -> bool:
            return (await self._model_states.model_status(model_id)).state != "ready"

        return await forgotten_by_all(self._models[model_id], image_id, "image", model_id, is_gone)

    async def _is_asleep(self, model_id: str) -> bool:
        if time.monotonic() < self._awake_until.get(model_id, 0.0):
            return False
        return (await self._model_states.model_status(model_id)).state == "asleep"

    def model(self, model_id: str, identifier: str) -> "DeploymentHandle[Any]":
        """Returns a handle whose calls go to the replica that remembers an image or a video: see affinity_router.py.

        Args:
            model_id: a configured model.
            identifier: the image_id or video_id.
        """
        return self._models[model_id].options(session_id=affinity(identifier))

    async def wake(self, model_id: str, deadline: Deadline) -> None:
        """Waits for a model that is asleep or loading. Meanwhile only a small call is queued, not an image.

        Raises:
            ModelUnavailable: the model did not wake up in time, or failed to load.
            DeadlineExceeded: the request's own time is over.
        """
        if time.monotonic() < self._awake_until.get(model_id, 0.0):
            return
        waking = deadline.step(self.config.model_wait_s)
        status: ModelStatus | None = None
        ready = asyncio.create_task(self.retries.call(self._models[model_id].wait_until_ready.remote, waking, model_id))
        try:
            while not (await asyncio.wait({ready}, timeout=LOOK_EVERY_S))[0]:
                # A warm model that cannot be loaded has no replica that could report it.
                status = await self._model_states.model_status(model_id)
                if status.state == "failed":
                    raise ModelUnavailable(f"model {model_id} failed to load: {status.detail}")
            await ready
        except DeadlineExceeded as error:
            if deadline.remaining():
                status = await self._model_states.model_status(model_id)
            elif status is None or status.state == "ready":
                # No time is left to look.
                raise
            raise ModelUnavailable(f"model {status}; try again later") from error
        finally:
            ready.cancel()
        self._awake_until[model_id] = time.monotonic() + AWAKE_FOR_S


async def _in_steps(
    send: Callable[[Supplies], Awaitable[ModelAnswer[Result] | Wanted]], sources: Sources, release: Callable[[], None]
) -> ModelAnswer[Result] | Wanted:
    """Sends a call without data, and again with the data that the replica wants; releases a request that fails."""
    try:
        answer = await send(Supplies())
    except Overloaded:
        # A rejected call was never elected to send pixels, so there is nothing to release. Most calls are rejected
        # under overload.
        raise
    except BaseException:
        release()
        raise
    if not isinstance(answer, Wanted) or answer.what not in sources:
        return answer
    try:
        return await send(Supplies(**{answer.what: await sources[answer.what]()}))
    except BaseException:
        release()
        raise


def _nothing() -> None:
    """Releases nothing: a request that offers no data is never elected."""


def _not_remembered(what: Want, model_id: str) -> ImageNotCached:
    return ImageNotCached(NOT_REMEMBERED[what].format(model_id))


async def _give_up(model: "DeploymentHandle[Any]", image_id: str, name: str) -> None:
    try:
        await model.give_up.remote(image_id, name)
    except (RayError, BackPressureError, DeploymentUnavailableError) as error:
        # The replica elects another caller by itself, a little later.
        logger.info("could not release the caller of image %s: %s", image_id, type(error).__name__)
