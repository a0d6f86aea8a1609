"""Reaching models: affinity, two steps; and for every call deadlines, and repeats after a replica's death."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, TypeAlias

from ray.exceptions import (
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.errors import DeadlineExceeded, ImageNotCached, ModelUnavailable, Overloaded, ServiceError, Unavailable
from deployments.messages.arrays import RgbArray
from deployments.messages.everything import AutomaticMasks, AutomaticPrompt
from deployments.messages.model_answers import AnswerSize, EmbeddedImage, ModelAnswer, PixelsWanted
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation
from deployments.model_status import ModelStatus
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_states import LOOK_EVERY_S, ModelStates
from deployments.settings import RequestParserConfig
from deployments.telemetry.metrics import RequestMetrics

logger = logging.getLogger("ray.serve")

# What a dying replica, worker or node looks like to its callers; every call here may be sent again after them.
INFRASTRUCTURE_FAULTS = (RayActorError, ReplicaUnavailableError, WorkerCrashedError, ObjectLostError)

Pixels: TypeAlias = Callable[[], Awaitable[RgbArray]]
"""Decodes an image."""

AWAKE_FOR_S = 30.0
"""A model that answered is taken to be awake for this long, and not asked whether it is."""

FORGET_TIMEOUT_S = 10.0
LATE = "the request did not finish within its deadline"


class ModelCalls:
    """What RequestParser asks of the models.

    Args:
        models: a handle for each model id.
        model_states: what the cluster says of the models.
        config: time-outs and repeats.
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
        self._metrics = metrics
        self.config = config
        self._awake_until: dict[str, float] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def segment(
        self,
        model_id: str,
        image_id: str,
        prompt: Prompt,
        pixels: Pixels | None,
        deadline: Deadline,
        answer_size: AnswerSize | None = None,
    ) -> ModelAnswer[Segmentation]:
        """One prompt on one image, on the replica that remembers the image if there is one.

        Args:
            model_id: a configured model.
            image_id: digest of the image.
            prompt: what to segment.
            pixels: decodes the image; called only if the model wants to see it. None: there is only its id.
            deadline: when there must be an answer.
            answer_size: what the answer may hold; None is no limit.

        Raises:
            ImageNotCached: the model does not remember the image, and there is only its id.
            TooLarge: the answer would hold too many numbers.
            ModelUnavailable: the model did not wake up in time, or failed to load.
            Overloaded: its queues, or its device's memory, are full.
            DeadlineExceeded: there was no answer in time.
            ServiceError: what `pixels` raised.
        """
        sender = _new_name()
        options = {"has_pixels": pixels is not None, "sender": sender, "answer_size": answer_size}

        def ask(model: "DeploymentHandle[Any]", image: RgbArray | None) -> Any:
            return model.segment.remote(image_id, prompt, image, wait_s=deadline.remaining(), **options)

        answer = await self._in_two_steps(model_id, image_id, ask, pixels, deadline, sender)
        assert isinstance(answer, ModelAnswer)
        return answer

    async def embed(self, model_id: str, image_id: str, pixels: Pixels, deadline: Deadline) -> EmbeddedImage:
        """Embeds an image ahead of its prompts; see `segment` for the arguments and errors."""
        sender = _new_name()

        def ask(model: "DeploymentHandle[Any]", image: RgbArray | None) -> Any:
            return model.embed.remote(image_id, image, sender=sender, wait_s=deadline.remaining())

        answer = await self._in_two_steps(model_id, image_id, ask, pixels, deadline, sender)
        assert isinstance(answer, EmbeddedImage)
        return answer

    async def auto(
        self,
        model_id: str,
        image_id: str,
        prompt: AutomaticPrompt,
        pixels: Pixels | None,
        deadline: Deadline,
        max_numbers: int,
    ) -> ModelAnswer[AutomaticMasks]:
        """Segments everything in an image, into masks of up to `max_numbers`; see `segment` for the rest."""
        sender = _new_name()
        options = {"has_pixels": pixels is not None, "sender": sender, "max_numbers": max_numbers}

        def ask(model: "DeploymentHandle[Any]", image: RgbArray | None) -> Any:
            return model.auto.remote(image_id, prompt, image, wait_s=deadline.remaining(), **options)

        if pixels is not None and prompt.crop_n_layers:
            # Crops are embedded anew each time, so there is nothing to ask first, and no promise to give up.
            await self._wake(model_id, deadline)
            model, image = self._models[model_id].options(session_id=image_id), await pixels()
            answer = await self.call(lambda: ask(model, image), deadline, model_id)
        else:
            answer = await self._in_two_steps(model_id, image_id, ask, pixels, deadline, sender)
        assert isinstance(answer, ModelAnswer)
        return answer

    async def _in_two_steps(
        self,
        model_id: str,
        image_id: str,
        ask: "Callable[[DeploymentHandle[Any], RgbArray | None], Any]",
        pixels: Pixels | None,
        deadline: Deadline,
        sender: str,
    ) -> Any:
        """Asks by the image's id alone, and again with its pixels if the model wants them."""
        if pixels is None and await self._is_asleep(model_id):
            # It remembers nothing, and is not to wake for an answer that is known.
            raise _not_cached(model_id)
        await self._wake(model_id, deadline)
        # The same image, the same replica: affinity_router.py.
        model = self._models[model_id].options(session_id=image_id)
        try:
            try:
                answer = await self.call(lambda: ask(model, None), deadline, model_id)
            except Overloaded:
                # Who is refused was promised nothing; under an overload these are most calls.
                pixels = None
                raise
            if isinstance(answer, PixelsWanted) and pixels is not None:
                image = await pixels()
                answer = await self.call(lambda: ask(model, image), deadline, model_id)
        except BaseException:
            # Who has no pixels was not elected to send any.
            if pixels is not None:
                self._give_up_in_background(model, image_id, sender)
            raise
        if isinstance(answer, PixelsWanted):
            raise _not_cached(model_id)
        return answer

    def _give_up_in_background(self, model: "DeploymentHandle[Any]", image_id: str, sender: str) -> None:
        """Others may wait for the pixels of a request that fails; it may have been elected without knowing it yet."""
        # In a context of its own, since the request's calls may be cancelled.
        task = asyncio.get_running_loop().create_task(_give_up(model, image_id, sender), context=Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def forget(self, image_id: str) -> bool:
        """Makes every replica of every model forget an image; whether any remembered it. Wakes none.

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
        patience = Deadline(min(self.config.model_wait_s, deadline.remaining()))
        status: ModelStatus | None = None
        ready = asyncio.create_task(self.call(self._models[model_id].wait_until_ready.remote, patience, model_id))
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

    async def call(self, send: Callable[[], Any], deadline: Deadline, callee: str) -> Any:
        """Sends a request to a deployment; sends it again, a few times, if the replica that had it died.

        Args:
            send: a handle's remote call.
            deadline: when there must be an answer.
            callee: a model id, or the deployment's name; for the metric.

        Raises:
            DeadlineExceeded, ModelUnavailable, Overloaded, Unavailable, and what the deployment raised of ServiceError.
        """
        for attempt in range(self.config.max_retries + 1):
            if deadline.remaining() <= 0:
                raise DeadlineExceeded(LATE)
            response = send()
            try:
                async with asyncio.timeout(deadline.remaining()) as patience:
                    return await _answer(response)
            except TimeoutError as error:
                # One that a replica raised is a bug there, not the end of this deadline.
                if not patience.expired():
                    raise
                response.cancel()
                raise DeadlineExceeded(LATE) from error
            except asyncio.CancelledError:
                # Serve would let a replica finish what nobody waits for any more.
                response.cancel()
                raise
            except INFRASTRUCTURE_FAULTS as error:
                attempts = self.config.max_retries + 1
                logger.warning("%s, attempt %d of %d: %s", callee, attempt + 1, attempts, type(error).__name__)
                # It is no longer known which models are awake.
                self._awake_until.clear()
                if attempt + 1 == attempts:
                    break
                self._metrics.retried(callee)
                # A moment for the router to learn of the death.
                await asyncio.sleep(min(0.2 * 2**attempt, deadline.remaining()))
        raise Unavailable("the replicas that had this request died; it is safe to send it again")


def _not_cached(model_id: str) -> ImageNotCached:
    return ImageNotCached(f"image_id: {model_id} does not remember this image; upload it (again)")


def _new_name() -> str:
    """Tells the sender of an image from all others."""
    return uuid.uuid4().hex


async def _give_up(model: "DeploymentHandle[Any]", image_id: str, sender: str) -> None:
    try:
        await model.give_up.remote(image_id, sender)
    except (RayError, BackPressureError, DeploymentUnavailableError) as error:
        # Those who wait elect another sender by themselves, a little later.
        logger.info("no replica took back the promise of image %s: %s", image_id, type(error).__name__)


async def _answer(response: Awaitable[Any]) -> Any:
    """The answer of a deployment, with Ray's and Serve's wrappings of errors taken off."""
    try:
        answer = await response
    except BackPressureError as error:
        raise Overloaded(f"overloaded: {error.message}") from error
    except DeploymentUnavailableError as error:
        raise ModelUnavailable(error.message) from error
    except (*INFRASTRUCTURE_FAULTS, TaskCancelledError):
        raise
    except RayTaskError as error:
        raise _cause(error) from None
    # A model's refusals come as answers: refusals.py.
    if isinstance(answer, Overloaded):
        raise answer
    return answer


def _cause(error: BaseException) -> BaseException:
    """Our own error inside the wrappings that each hop adds, or the outermost if there is none inside."""
    inner: Any = error
    while isinstance(inner, RayTaskError) and inner.cause is not None:
        inner = inner.cause
    return inner if isinstance(inner, ServiceError) else error
