"""Calls of models: affinity, waking, and supplying what a replica wants."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from typing import Any, TypeAlias, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.errors import DeadlineExceeded, ImageNotCached, ModelUnavailable, Overloaded, Unavailable
from deployments.messages.calls import Caller, ModelAnswer, ModelCall, Supplies, Want, Wanted
from deployments.model_status import ModelStatus
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_states import LOOK_EVERY_S, ModelStates
from deployments.parsing.retries import Retries
from deployments.settings import RequestParserConfig
from deployments.telemetry.metrics import RequestMetrics

Result = TypeVar("Result")

Sources: TypeAlias = Mapping[Want, Callable[[], Awaitable[Any]]]
"""What a request can supply: for each, a function that gets it."""

NOT_REMEMBERED: dict[Want, str] = {"pixels": "image_id: {} does not remember this image; upload it (again)"}

logger = logging.getLogger("ray.serve")

AWAKE_FOR_S = 30.0
"""A model that answered is taken to be awake for this long, and not asked whether it is."""

FORGET_TIMEOUT_S = 10.0


class ModelCalls:
    """Calls the models on behalf of RequestParser.

    Args:
        models: a handle for each model id.
        model_states: what the cluster says of the models.
        config: time-outs.
        metrics: count repeats.
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
        # After a replica's death it is no longer known which models are awake.
        self.retries = Retries(config.max_retries, metrics, on_fault=self._awake_until.clear)
        self.config = config

    def configure(self, config: RequestParserConfig) -> None:
        """Takes new time-outs and numbers of repeats."""
        self.config = config
        self.retries.max_retries = config.max_retries

    async def ask(
        self, model_id: str, call: ModelCall[Result], sources: Sources, deadline: Deadline
    ) -> ModelAnswer[Result]:
        """Asks a model, on the replica that remembers the image if there is one.

        The call goes out alone first. If the replica wants more, the call is sent again with it: a remembered image
        costs neither decoding nor transfer.

        Args:
            model_id: a configured model.
            call: what to ask.
            sources: what the request can supply, called only for what the replica wants.
            deadline: when there must be an answer.

        Raises:
            ImageNotCached: the model does not remember the image, and the request cannot supply its pixels.
            TooLarge: the answer would hold too many numbers.
            ModelUnavailable: the model did not wake up in time, or failed to load.
            Overloaded: its queues, or its device's memory, are full.
            DeadlineExceeded: there was no answer in time.
            ServiceError: any that a source raised.
        """
        if not sources and await self._is_asleep(model_id):
            # A sleeping model remembers nothing: the answer is known without waking it.
            raise _not_remembered("pixels", model_id)
        await self._wake(model_id, deadline)
        # The same image, the same replica: affinity_router.py.
        model = self._models[model_id].options(session_id=call.image_id)
        name = uuid.uuid4().hex

        async def send(supplies: Supplies) -> ModelAnswer[Result] | Wanted:
            def ask() -> Any:
                return model.ask.remote(call, supplies, Caller(name, frozenset(sources), deadline.remaining()))

            answer: ModelAnswer[Result] | Wanted = await self.retries.call(ask, deadline, model_id)
            return answer

        if call.needs_pixels and "pixels" in sources:
            # There is nothing to ask first, and no promise to release.
            answer = await send(Supplies(await sources["pixels"]()))
        else:
            elected = bool(sources)
            try:
                try:
                    answer = await send(Supplies())
                except Overloaded:
                    # A rejected call was never elected to send pixels, so there is nothing to release. Common under
                    # overload.
                    elected = False
                    raise
                if isinstance(answer, Wanted) and answer.what in sources:
                    answer = await send(Supplies(**{answer.what: await sources[answer.what]()}))
            except BaseException:
                if elected:
                    self._give_up_in_background(model, call.image_id, name)
                raise
        if isinstance(answer, Wanted):
            raise _not_remembered(answer.what, model_id)
        return answer

    def _give_up_in_background(self, model: "DeploymentHandle[Any]", image_id: str, name: str) -> None:
        """Releases a request that fails: it may have been elected unknowingly, and others wait for its pixels."""
        # In a context of its own, since the request's calls may be cancelled.
        task = asyncio.get_running_loop().create_task(_give_up(model, image_id, name), context=Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def forget(self, image_id: str) -> bool:
        """Makes every replica of every model forget an image; returns whether any remembered it. Wakes none.

        Raises:
            Unavailable: a replica did not answer in time.
        """
        awake = [status.model_id for status in await self._model_states.model_statuses() if status.state != "asleep"]
        return any(await asyncio.gather(*(self._forget(model_id, image_id) for model_id in awake)))

    async def _forget(self, model_id: str, image_id: str) -> bool:
        deadline, found = Deadline(FORGET_TIMEOUT_S), False
        while deadline.remaining():
            response = self._models[model_id].broadcast("forget", image_id)
            try:
                results = await response.results_async(timeout_s=deadline.remaining(), return_exceptions=True)
            except DeploymentUnavailableError:
                # No replica, no memory; but a handle that was never used learns of its replicas a moment later.
                if (await self._model_states.model_status(model_id)).state != "ready":
                    return found
                await asyncio.sleep(0.2)
                continue
            except TimeoutError:
                break
            found = found or any(result is True for result in results)
            if not any(isinstance(result, BaseException) for result in results):
                return found
            # What a dead replica remembered is gone with it. Until the router knows of the death, it is asked again.
            logger.info("asking the replicas of %s again to forget image %s", model_id, image_id)
            await asyncio.sleep(0.2)
        raise Unavailable(f"a replica of {model_id} did not answer; it may still remember the image")

    async def _is_asleep(self, model_id: str) -> bool:
        if time.monotonic() < self._awake_until.get(model_id, 0.0):
            return False
        return (await self._model_states.model_status(model_id)).state == "asleep"

    async def _wake(self, model_id: str, deadline: Deadline) -> None:
        """Waits for a model that is asleep or loading, without the weight of an image in the queue."""
        if time.monotonic() < self._awake_until.get(model_id, 0.0):
            return
        waking = deadline.step(self.config.model_wait_s)
        status: ModelStatus | None = None
        ready = asyncio.create_task(self.retries.call(self._models[model_id].wait_until_ready.remote, waking, model_id))
        try:
            while not (await asyncio.wait({ready}, timeout=LOOK_EVERY_S))[0]:
                # A warm model that cannot be loaded has no replica that could say so.
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


def _not_remembered(what: Want, model_id: str) -> ImageNotCached:
    return ImageNotCached(NOT_REMEMBERED[what].format(model_id))


async def _give_up(model: "DeploymentHandle[Any]", image_id: str, name: str) -> None:
    try:
        await model.give_up.remote(image_id, name)
    except (RayError, BackPressureError, DeploymentUnavailableError) as error:
        # The requests that wait elect another sender by themselves, a little later.
        logger.info("no replica took back the promise of image %s: %s", image_id, type(error).__name__)
