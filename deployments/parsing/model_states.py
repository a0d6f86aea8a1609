"""What the cluster itself says: the state of each model, the hardware of each node, how clients reach this replica."""

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
    """Asks Serve's controller and the status board.

    Args:
        model_ids: the configured models.
    """

    def __init__(self, model_ids: Sequence[str]) -> None:
        self._model_ids = model_ids
        self._statuses = [ModelStatus(model_id, "loading", "not known yet") for model_id in model_ids]
        self._looked_at = -math.inf
        self._looking = asyncio.Lock()
        self._lookers = ThreadPoolExecutor(2, thread_name_prefix="status")

    async def model_statuses(self) -> list[ModelStatus]:
        """The state of each configured model, at most a second old; wakes none.

        Asked in threads of its own, so that a cluster whose control plane hangs can still be told to be alive, and can
        still decode images: then the last answer stands.
        """
        async with self._looking:
            if time.monotonic() - self._looked_at > LOOK_EVERY_S:
                loop = asyncio.get_running_loop()
                try:
                    async with asyncio.timeout(CONTROL_PLANE_TIMEOUT_S):
                        self._statuses = await loop.run_in_executor(self._lookers, self._look)
                except (TimeoutError, RayError) as error:
                    logger.warning("the control plane does not answer: %s", type(error).__name__)
                self._looked_at = time.monotonic()
        return self._statuses

    def _look(self) -> list[ModelStatus]:
        reported = read_statuses()
        application = serve.status().applications.get(APP_NAME)
        deployments = application.deployments if application else {}
        return [
            joined_status(model_id, reported.get(model_id), deployments.get(model_deployment_name(model_id)))
            for model_id in self._model_ids
        ]

    async def model_status(self, model_id: str) -> ModelStatus:
        """The state of one configured model."""
        return next(status for status in await self.model_statuses() if status.model_id == model_id)


def joined_status(model_id: str, reported: ModelStatus | None, deployment: Any) -> ModelStatus:
    """Joins what a model's replicas say with what Serve says of its deployment (None while it does not know one)."""
    if deployment is None:
        return reported or ModelStatus(model_id, "loading", "starting a replica")
    broken = deployment.status in ("UNHEALTHY", "DEPLOY_FAILED")
    if broken and reported is not None and reported.state == "failed":
        return reported
    if deployment.status == "DEPLOY_FAILED":
        return ModelStatus(model_id, "failed", deployment.message)
    if any(deployment.replica_states.values()):
        return reported or ModelStatus(model_id, "loading", "starting a replica")
    # Unhealthy is also what Serve calls a deployment while it replaces a replica that died.
    return ModelStatus(model_id, "loading", deployment.message) if broken else ModelStatus(model_id, "asleep")


async def cluster_hardware() -> list[dict[str, Any]]:
    """The hardware of every living node of the cluster, asked on the node itself."""
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
