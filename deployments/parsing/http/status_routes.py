"""The routes beside segmentation: health, version, models, hardware."""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from deployments.errors import ModelUnavailable
from deployments.parsing.http import openapi
from deployments.parsing.model_states import ModelStates, cluster_hardware


class StatusRoutes:
    """The routes for operators and load balancers.

    Args:
        default_model_id: the model whose state counts as the service's.
        model_states: the source of the models' states.
    """

    def __init__(self, default_model_id: str, model_states: ModelStates) -> None:
        self._default_model_id = default_model_id
        self._model_states = model_states

    def add_to(self, app: FastAPI) -> None:
        """Registers the routes, as bound methods."""
        app.add_api_route("/health", self.get_health, operation_id="health", tags=["status"])
        app.add_api_route(
            "/ready", self.get_ready, operation_id="ready", tags=["status"], responses=openapi.error_responses(503)
        )
        guarded: dict[str, Any] = {"tags": ["status"], "responses": openapi.error_responses(401)}
        app.add_api_route("/version", self.get_version, operation_id="version", **guarded)
        app.add_api_route("/models", self.get_models, operation_id="models", **guarded)
        app.add_api_route("/hardware/info", self.get_hardware_info, operation_id="hardwareInfo", **guarded)
        app.add_api_route("/hardware/stats", self.get_hardware_stats, operation_id="hardwareStats", **guarded)

    async def get_health(self) -> openapi.Health:
        """Tells whether the service is alive."""
        state = (await self._model_states.model_status(self._default_model_id)).state
        return openapi.Health(status="ERROR" if state == "failed" else "IDLE" if state == "asleep" else "OK")

    async def get_ready(self) -> openapi.Ready:
        """Tells whether the default model can answer; 503 while it cannot."""
        status = await self._model_states.model_status(self._default_model_id)
        if status.state != "ready":
            raise ModelUnavailable(f"model {status}")
        return openapi.Ready(status="READY", model_id=status.model_id)

    async def get_version(self) -> openapi.Version:
        """Returns the service's version and its default model."""
        return openapi.Version(model_id=self._default_model_id, version=version("segment-anything-2-serve"))

    async def get_models(self) -> openapi.Models:
        """Lists every configured model with its state: asleep, loading (how far), ready, or failed (why)."""
        default = self._default_model_id
        statuses = await self._model_states.model_statuses()
        return openapi.Models(
            models=[openapi.Model(default=status.model_id == default, **vars(status)) for status in statuses]
        )

    async def get_hardware_info(self) -> openapi.HardwareInfo:
        """Lists the GPUs and nodes of the cluster."""
        nodes = await cluster_hardware()
        gpus = [openapi.GpuInfo(**gpu) for node in nodes for gpu in node.get("gpus", [])]
        return openapi.HardwareInfo(
            model_id=self._default_model_id, gpu_info=dict(enumerate(gpus)), nodes=_node_documents(nodes)
        )

    async def get_hardware_stats(self) -> openapi.HardwareStats:
        """Tells how busy the GPUs and nodes of the cluster are."""
        nodes = await cluster_hardware()
        gpus = [openapi.GpuStats(**gpu) for node in nodes for gpu in node.get("gpus", [])]
        return openapi.HardwareStats(
            model_id=self._default_model_id, gpu_stats=dict(enumerate(gpus)), nodes=_node_documents(nodes)
        )


def _node_documents(nodes: list[dict[str, Any]]) -> list[openapi.Node]:
    return [
        openapi.Node(gpu_count=len(node.get("gpus", [])), **{key: node[key] for key in node if key != "gpus"})
        for node in nodes
    ]
