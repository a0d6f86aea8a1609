"""Calls to other deployments: each has a deadline, and is sent again if the replica that had it died."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, TaskCancelledError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from deployments.errors import DeadlineExceeded, ModelUnavailable, Overloaded, ServiceError, Unavailable
from deployments.parsing.deadline import Deadline
from deployments.telemetry.metrics import RequestMetrics

logger = logging.getLogger("ray.serve")

# Errors that callers see when a replica, worker or node dies. Every call of this service may be sent again after them.
INFRASTRUCTURE_FAULTS = (RayActorError, ReplicaUnavailableError, WorkerCrashedError, ObjectLostError)

LATE = "the request did not finish within its deadline"

FORGET_TIMEOUT_S, FORGET_PAUSE_S = 10.0, 0.2


class Retries:
    """Sends calls, and sends them again if a replica died.

    Args:
        max_retries: how often a call is sent again; may be changed at any time.
        metrics: counts the repeats.
        on_fault: called when a replica has died.
    """

    def __init__(self, max_retries: int, metrics: RequestMetrics, on_fault: Callable[[], None] = lambda: None) -> None:
        self.max_retries = max_retries
        self._metrics = metrics
        self._on_fault = on_fault

    async def call(self, send: Callable[[], Any], deadline: Deadline, callee: str) -> Any:
        """Sends a call to a deployment; sends it again, up to `max_retries` times, if the replica that had it died.

        Args:
            send: makes a handle's remote call.
            deadline: when there must be an answer.
            callee: a model id, or the deployment's name; for the metric.

        Raises:
            DeadlineExceeded, ModelUnavailable, Overloaded, Unavailable, or a ServiceError that the deployment raised.
        """
        attempts = self.max_retries + 1
        for attempt in range(1, attempts + 1):
            if deadline.remaining() <= 0:
                raise DeadlineExceeded(LATE)
            try:
                return await _within(deadline, send())
            except INFRASTRUCTURE_FAULTS as error:
                logger.warning("%s, attempt %d of %d: %s", callee, attempt, attempts, type(error).__name__)
                self._on_fault()
                if attempt < attempts:
                    self._metrics.retried(callee)
                    # Gives the router a moment to learn of the death.
                    await asyncio.sleep(min(0.1 * 2**attempt, deadline.remaining()))
        raise Unavailable("the replicas that had this request died; it is safe to send it again")


async def forgotten_by_all(
    handle: Any, identifier: str, what: str, callee: str, is_gone: Callable[[], Awaitable[bool]]
) -> bool:
    """Makes every replica of a deployment forget something; returns whether any had it.

    Args:
        handle: of the deployment, which has a method `forget`.
        identifier: the argument of `forget`.
        what: what that is, for messages.
        callee: the deployment, for messages.
        is_gone: asked if the handle knows of no replica: whether there is none.

    Raises:
        Unavailable: a replica did not answer in time.
    """
    deadline, found = Deadline(FORGET_TIMEOUT_S), False
    while left_s := deadline.remaining():
        response = handle.broadcast("forget", identifier)
        try:
            results = await response.results_async(timeout_s=left_s, return_exceptions=True)
        except DeploymentUnavailableError:
            # Without a replica there is nothing to forget. But a handle learns of replicas only after its first use.
            if await is_gone():
                return found
            await asyncio.sleep(FORGET_PAUSE_S)
            continue
        except TimeoutError:
            break
        found = found or any(result is True for result in results)
        if not any(isinstance(result, BaseException) for result in results):
            return found
        # A dead replica remembers nothing, but replicas are asked again until the router knows of the death.
        logger.info("asking the replicas of %s again to forget %s %s", callee, what, identifier)
        await asyncio.sleep(FORGET_PAUSE_S)
    raise Unavailable(f"a replica of {callee} did not answer; it may still have the {what}")


async def _within(deadline: Deadline, response: Any) -> Any:
    """Awaits a response until the deadline, and cancels the call when nothing waits for it any more."""
    try:
        async with asyncio.timeout(deadline.remaining()) as timeout:
            return await _answer(response)
    except TimeoutError as error:
        # A TimeoutError that a replica raised is a bug there, not the end of this deadline.
        if not timeout.expired():
            raise
        response.cancel()
        raise DeadlineExceeded(LATE) from error
    except asyncio.CancelledError:
        # Otherwise Serve would let the replica finish a call whose answer is not needed any more.
        response.cancel()
        raise


async def _answer(response: Awaitable[Any]) -> Any:
    """Awaits a deployment's answer, and unwraps errors that Ray and Serve have wrapped."""
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
    # A model returns Overloaded instead of raising it: see batching.overload_returned.
    if isinstance(answer, Overloaded):
        raise answer
    return answer


def _cause(error: BaseException) -> BaseException:
    """Finds the ServiceError inside the wrappings that each hop adds; returns the outermost error if there is none."""
    inner: Any = error
    while isinstance(inner, RayTaskError) and inner.cause is not None:
        inner = inner.cause
    return inner if isinstance(inner, ServiceError) else error
