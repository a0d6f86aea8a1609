"""JobReplica: the model replica that a job runs on, and its move to one that has less to do.

A job begins on the replica that remembers its video. Consistent hashing would leave some replicas with several jobs and
others with none. So a job whose frames nobody remembers looks at one other replica now and then, and moves if that one
has at least two jobs fewer.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.errors import DeadlineExceeded, Unavailable
from deployments.messages.track import TrackedFrames
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_calls import ModelCalls

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


class JobReplica:
    """The replica that a job's calls go to.

    Args:
        calls: provides handles and retries.
        model_id: the model.
        video_id: SHA-256 of the video.
        on_end: called once, when the job ends.

    Attributes:
        job: the job's name, unique.
        model: the handle whose calls go to the replica.
    """

    def __init__(
        self, calls: ModelCalls, model_id: str, video_id: str, on_end: Callable[[], None] = lambda: None
    ) -> None:
        self._calls = calls
        self._model_id = model_id
        self.job = uuid.uuid4().hex
        self.model: DeploymentHandle[Any] = calls.model(model_id, video_id)
        self._name = ""
        self._looks = 0
        self._on_end = on_end
        self._has_ended = False
        self._background: set[asyncio.Task[None]] = set()

    async def begin(self, deadline: Deadline) -> None:
        """Wakes the model, and begins on the replica that remembers the video, if one does.

        If that fails or is cancelled, the job has ended.

        Raises:
            InvalidRequest: the model cannot follow objects.
            ModelUnavailable, Overloaded, DeadlineExceeded: see `ModelCalls.ask`.
        """
        try:
            await self._calls.wake(self._model_id, deadline)
            self._name, _ = await self._begin(self.model, deadline)
        except BaseException:
            self.end()
            raise

    async def balance(self, answer: TrackedFrames, deadline: Deadline, looks: int = 1) -> None:
        """Looks at other replicas, and moves to one that has at least two jobs fewer than the one that answered.

        Args:
            answer: to the job's last call. Its replica is another one than before if that has died or was full.
            deadline: when there must be an answer.
            looks: at how many.
        """
        self._name, others = answer.replica or self._name, answer.others
        for _ in range(looks):
            others = await self._balance(others, deadline)

    async def _balance(self, others: int, deadline: Deadline) -> int:
        """Moves the job as `balance` does; returns how many other jobs the replica has that the job now is on."""
        if not others:
            return 0
        self._looks += 1
        elsewhere = hashlib.sha256(f"{self.job} {self._looks}".encode()).hexdigest()
        candidate = self._calls.model(self._model_id, elsewhere)
        try:
            name, there = await self._begin(candidate, deadline)
        except (DeadlineExceeded, asyncio.CancelledError) as error:
            # It may take the job on all the same.
            self._end_in_background(candidate)
            if isinstance(error, DeadlineExceeded):
                return others
            raise
        except Unavailable:
            # The job is well where it is.
            return others
        if name == self._name:
            return there
        if there >= others:
            self._end_in_background(candidate)
            return others
        self._end_in_background(self.model)
        self.model, self._name = candidate, name
        return there

    def end(self) -> None:
        """Tells the replica that the job has ended; only the first call has an effect."""
        if not self._has_ended:
            self._has_ended = True
            self._on_end()
            self._end_in_background(self.model)

    async def _begin(self, model: "DeploymentHandle[Any]", deadline: Deadline) -> tuple[str, int]:
        """Returns a replica's name, and how many other jobs it has."""
        send = partial(model.begin_tracking.remote, self.job)
        name, others = await self._calls.retries.call(send, deadline, self._model_id)
        return name, others

    def _end_in_background(self, model: "DeploymentHandle[Any]") -> None:
        # A context of its own: calls in the request's context may be cancelled.
        task = asyncio.get_running_loop().create_task(_end(model, self.job), context=Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _end(model: "DeploymentHandle[Any]", job: str) -> None:
    try:
        await model.end_tracking.remote(job)
    except (RayError, BackPressureError, DeploymentUnavailableError):
        # The replica forgets a job from which it hears nothing.
        return
