"""Asks the cluster for the state of each model and the hardware of each node."""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.model_status import ModelStatus, read_statuses
from deployments.parsing.hardware import node_hardware
from deployments.settings import APP_NAME, model_deployment_name

logger = logging.getLogger("ray.serve")

HARDWARE_TIMEOUT_S = 10.0
CONTROL_PLANE_TIMEOUT_S = 2.0
LOOK_EVERY_S = 1.0


class ModelStates:
    """The state of each model, from Serve's controller and the status board.

    Args:
        model_ids: the configured models.
    """

    def __init__(self, model_ids: Sequence[str]) -> None:
        self._model_ids = model_ids
        self._statuses = [ModelStatus(model_id, "loading", "not known yet") for model_id in model_ids]
        self._read_at = -math.inf
        self._lock = asyncio.Lock()
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="status")

    async def model_statuses(self) -> list[ModelStatus]:
        """Returns the state of each configured model, at most a second old; wakes no sleeping model.

        If the control plane hangs, returns the last known states: they are read in threads of their own, so that
        this replica can still answer `/health` and decode images meanwhile.
        """
        async with self._lock:
            if time.monotonic() - self._read_at > LOOK_EVERY_S:
                loop = asyncio.get_running_loop()
                try:
                    async with asyncio.timeout(CONTROL_PLANE_TIMEOUT_S):
                        self._statuses = await loop.run_in_executor(self._executor, self._read)
                except (TimeoutError, RayError) as error:
                    logger.warning("the control plane does not answer: %s", type(error).__name__)
                self._read_at = time.monotonic()
        return self._statuses

    def _read(self) -> list[ModelStatus]:
        reported = read_statuses()
        application = serve.status().applications.get(APP_NAME)
        deployments = application.deployments if application else {}
        return [
            joined_status(model_id, reported.get(model_id), deployments.get(model_deployment_name(model_id)))
            for model_id in self._model_ids
        ]

    async def model_status(self, model_id: str) -> ModelStatus:
        """Returns the state of one configured model."""
        return next(status for status in await self.model_statuses() if status.model_id == model_id)


def joined_status(model_id: str, reported: ModelStatus | None, deployment: Any) -> ModelStatus:
    """Combines the state that a model's replicas reported with Serve's status of its deployment.

    Args:
        model_id: the model.
        reported: the replicas' best state; None if no living replica has reported any.
        deployment: Serve's status; None while Serve does not know the deployment.
    """
    if deployment is None:
        return reported or ModelStatus(model_id, "loading", "starting a replica")
    broken = deployment.status in ("UNHEALTHY", "DEPLOY_FAILED")
    if broken and reported is not None and reported.state == "failed":
        return reported
    if deployment.status == "DEPLOY_FAILED":
        return ModelStatus(model_id, "failed", deployment.message)
    if any(deployment.replica_states.values()):
        return reported or ModelStatus(model_id, "loading", "starting a replica")
    # Serve also calls a deployment UNHEALTHY while it replaces a replica that has died.
    return ModelStatus(model_id, "loading", deployment.message) if broken else ModelStatus(model_id, "asleep")


async def cluster_hardware() -> list[dict[str, Any]]:
    """Returns the hardware of every living node of the cluster, read on the node itself.

    A node that does not answer in time has only its `node_id` and an `error`.
    """
    nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    return list(await asyncio.gather(*(_ask_node(node["NodeID"]) for node in nodes)))


async def _ask_node(node_id: str) -> dict[str, Any]:
    task = ray.remote(num_cpus=0)(node_hardware)
    affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
    try:
        facts = await asyncio.wait_for(
            asyncio.wrap_future(task.options(scheduling_strategy=affinity).remote().future()), HARDWARE_TIMEOUT_S
        )
    except (TimeoutError, RayError) as error:
        return {"node_id": node_id, "error": f"no answer: {type(error).__name__}"}
    return {"node_id": node_id, **facts}
