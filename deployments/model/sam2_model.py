"""Sam2Model, the GPU deployment: one configured model, batched over requests."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve

from deployments.errors import ModelLoadError, ModelUnavailable
from deployments.model.model_loader import ModelLoader
from deployments.model_status import StatusReporter
from deployments.schema import Prompt, Segmentation, sorted_segmentation
from deployments.settings import ModelSettings, Sam2ModelConfig

if TYPE_CHECKING:
    from deployments.model.engine import Engine, ImageEmbedding

T = TypeVar("T")


class Sam2Model:
    """Segments images with one model, which is loaded before Serve sends the replica its first request.

    Where that fails, a *warm* deployment (min_replicas ≥ 1) raises, so that a rolling update stops. An *on-demand* one
    (min_replicas 0) answers requests with the cause and tries again in the background: if it raised, the whole
    application would be unhealthy and queued requests would hang.

    Raises:
        ModelLoadError: the model is warm and cannot be loaded.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._status = StatusReporter(serve.get_replica_context().replica_tag, settings.model_id)
        # One thread: torch parallelises inside an operation, and a GPU runs one kernel stream.
        self._torch_thread = ThreadPoolExecutor(1, thread_name_prefix="torch")
        self._loader = ModelLoader(self._load, self._status.failed, Sam2ModelConfig().load_retry_s)
        try:
            self._loader.attempt()
        except ModelLoadError:
            if _is_warm():
                raise
            self._loader.keep_trying()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the deployment's `user_config` (Sam2ModelConfig), at the start and whenever it changes."""
        config = Sam2ModelConfig.model_validate(user_config)
        self._embed.set_max_batch_size(config.max_batch_size)  # type: ignore[attr-defined]
        self._embed.set_batch_wait_timeout_s(config.batch_wait_timeout_s)  # type: ignore[attr-defined]
        self._loader.first_pause_s = config.load_retry_s

    async def wait_until_ready(self) -> None:
        """Returns once the model can answer.

        Raises:
            ModelUnavailable: loading failed; the message names model and cause.
        """
        self._ready_engine()

    async def segment(self, image_id: str, image: NDArray[np.uint8], prompt: Prompt) -> Segmentation:
        """Embeds an `H×W×3` RGB image, together with those of other requests, and decodes one prompt on it.

        Raises:
            ModelUnavailable: loading failed; the message names model and cause.
        """
        engine = self._ready_engine()
        embedding = await self._embed(image)
        low_res_logits, iou_predictions = await self._on_torch_thread(engine.decode, embedding, prompt)
        return sorted_segmentation(
            image_id,
            self._settings.model_id,
            embedding.image_size,
            low_res_logits,
            iou_predictions,
            prompt.has_object_axis,
        )

    @serve.batch
    async def _embed(self, images: list[NDArray[np.uint8]]) -> "list[ImageEmbedding]":
        return await self._embed_batch(images)

    async def _embed_batch(self, images: list[NDArray[np.uint8]]) -> "list[ImageEmbedding]":
        engine = self._ready_engine()
        return await self._on_torch_thread(engine.embed, images)

    def _ready_engine(self) -> "Engine":
        try:
            return self._loader.engine()
        except ModelLoadError as error:
            raise ModelUnavailable(f"model {self._settings.model_id} failed to load: {error.message}") from error

    async def _on_torch_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._torch_thread, function, *args)

    def _load(self) -> "Engine":
        """Loads the weights, moves them to the device, and runs the model once, so that no request pays for that."""
        # Imported here: they bring torch, which takes seconds, and app.py imports this file only to draw the graph.
        from deployments.model.checkpoints import load_model
        from deployments.model.engine import Engine, start_device

        model = load_model(self._settings, self._status.loading)
        self._status.loading("warming up")
        device = start_device(self._settings.device, _gpu_fraction(), self._settings.torch_threads)
        engine = Engine(model, device)
        [embedding] = engine.embed([np.zeros((64, 64, 3), np.uint8)])
        engine.decode(embedding, Prompt(point_coords=[[32, 32]], point_labels=[1]))
        self._status.ready()
        return engine


def _is_warm() -> bool:
    """Whether Serve always keeps a replica of this deployment."""
    autoscaling = serve.get_replica_context()._deployment_config.autoscaling_config
    return autoscaling is None or autoscaling.min_replicas > 0


def _gpu_fraction() -> float:
    """The share of a GPU that Ray assigned to this replica; the config file may have replaced the code's."""
    return float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
