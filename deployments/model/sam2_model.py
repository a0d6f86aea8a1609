"""Sam2Model, the GPU deployment: runs one configured model, in batches of many requests, and remembers embeddings."""

import logging
import math
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import ray
from ray import serve

from deployments.errors import ModelLoadError, ModelUnavailable, Overloaded
from deployments.messages.arrays import RgbArray
from deployments.messages.calls import (
    AutoCall,
    Caller,
    EmbedCall,
    EmbeddedImage,
    ModelAnswer,
    ModelCall,
    SegmentCall,
    Supplies,
    Wanted,
)
from deployments.messages.everything import AutomaticMasks
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation, sorted_segmentation
from deployments.messages.track import TrackCall, TrackedFrames, TrackState
from deployments.messages.video import FrameBatch
from deployments.model.batching import Stage, Turns, overload_returned
from deployments.model.embedding_cache import EmbeddingCache
from deployments.model.model_loader import DeviceDefaults, ModelLoader, load_engine
from deployments.model.tracking import Tracking
from deployments.model_status import StatusReporter
from deployments.settings import ModelSettings, Sam2ModelConfig
from deployments.telemetry.metrics import CacheMetrics, ModelMetrics
from deployments.telemetry.tracing import span

if TYPE_CHECKING:
    from deployments.model.engine import DecodedPrompt, Engine, ImageEmbedding
    from deployments.model.tracker import Chunk, TrackedChunk

Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")

NO_SUPPLIES, ANYONE = Supplies(), Caller()

DONE = object()

MAX_WAITING_AUTOS = 8
"""Limit on waiting requests to segment everything, each of which may hold its image's pixels."""


@dataclass
class Embedded(Generic[Result]):
    """An image's embedding, and how the call got it.

    Attributes:
        embedding: the embedding of the whole image.
        cache: `miss` if the encoder ran for this call, else `hit`.
        seconds: seconds that the encoder ran, or that the call waited for another call's run.
    """

    embedding: "ImageEmbedding"
    cache: Literal["hit", "miss"]
    seconds: float

    def answer(self, result: Result, decode_s: float = 0.0) -> ModelAnswer[Result]:
        """Builds the answer to the call that the image was embedded for."""
        return ModelAnswer(result, self.cache, self.seconds, decode_s)


class Sam2Model:
    """Segments images with one model, which is loaded before Serve sends the replica its first request.

    If loading fails, a *warm* deployment (min_replicas ≥ 1) raises, so that a rolling update stops. An *on-demand*
    deployment (min_replicas 0) answers requests with the cause and tries again in the background: if it raised, the
    whole application would be unhealthy and queued requests would hang.

    Raises:
        ModelLoadError: the model is warm and cannot be loaded.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._config = Sam2ModelConfig()
        self._replica_tag = serve.get_replica_context().replica_tag
        self._status = StatusReporter(self._replica_tag, settings.model_id)
        self._metrics = ModelMetrics(settings.model_id)
        # Two stages, so that a click on a remembered image does not wait for a batch of new images.
        self._embed_stage: Stage[RgbArray, ImageEmbedding] = Stage(
            "embed", settings.model_id, lambda images: self._engine().embed_each(images), self._embed, self._metrics
        )
        self._decode_stage: Stage[tuple[ImageEmbedding, Prompt], DecodedPrompt] = Stage(
            "decode", settings.model_id, lambda items: self._engine().decode_each(items), self._decode, self._metrics
        )
        self._auto_turns = Turns("auto", settings.model_id, MAX_WAITING_AUTOS, self._metrics)
        # At most half of the replica's places go to calls that wait for another call's pixels: calls that bring pixels
        # need the rest.
        self._cache: EmbeddingCache[ImageEmbedding] = EmbeddingCache(
            CacheMetrics(settings.model_id), max_waiting=_max_ongoing_requests() // 2
        )
        self._tracking = Tracking(settings.model_id, self._engine, self._encode, self._cache)
        self._track_stage: Stage[Chunk, TrackedChunk] = Stage(
            "track", settings.model_id, self._tracking.run, self._track, self._metrics
        )
        # The loader's thread configures stages and cache too, and must not restore a configuration that was replaced.
        self._configuring = threading.Lock()
        self._defaults = DeviceDefaults()
        self._loader = ModelLoader(self._load, self._note_failure, self._config.load_retry_s)
        try:
            self._loader.attempt()
        except ModelLoadError:
            if _is_warm():
                raise
            self._loader.keep_trying()

    # ---- load

    # Async: Serve runs synchronous methods in a thread of their own, and the cache belongs to the event loop.
    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies the deployment's `user_config` (Sam2ModelConfig), at the start and whenever it changes."""
        self._config = Sam2ModelConfig.model_validate(user_config)
        self._loader.first_pause_s = self._config.load_retry_s
        self._configure()

    async def wait_until_ready(self) -> None:
        """Returns once the model can answer.

        Raises:
            ModelUnavailable: loading failed; the message names the model and the cause.
        """
        self._engine()

    async def check_health(self) -> None:
        """Runs a small operation on the device. Serve calls this regularly, and replaces a replica that fails it."""
        if self._loader.is_loaded:
            await self._decode_stage.on_thread(self._engine().check_device)

    def _load(self) -> "Engine":
        started = time.perf_counter()
        engine, self._defaults = load_engine(self._settings, _gpu_fraction(), self._status.loading)
        # This may be the loader's thread. Stages and cache may still be configured: no request has reached them yet.
        self._configure()
        self._metrics.loaded(time.perf_counter() - started)
        self._status.ready(engine.encoder_backend)
        # Imported here, since it imports torch, which is loaded by now.
        from deployments.model.openvino_encoder import switch_in_background

        switch_in_background(self._settings, engine, self._status.ready)
        return engine

    def _configure(self) -> None:
        """Configures stages and cache; a value that the configuration leaves open is set to suit the device."""
        with self._configuring:
            config, defaults = self._config, self._defaults
            self._embed_stage.configure(config.max_batch_size or defaults.images, config.batch_wait_timeout_s)
            # Prompts need no wait: calls that arrive while a batch is running form the next batch.
            self._decode_stage.configure(config.max_decode_batch_size or defaults.prompts)
            self._track_stage.configure(config.max_batch_size or defaults.images)
            self._tracking.configure(config.track_state_bytes)
            max_bytes = defaults.cache_bytes if config.cache_bytes is None else config.cache_bytes
            self._cache.configure(max_bytes, config.cache_ttl_s, config.pixels_timeout_s)

    def _engine(self) -> "Engine":
        try:
            return self._loader.engine()
        except ModelLoadError as error:
            raise ModelUnavailable(f"model {self._settings.model_id} failed to load: {error.message}") from error

    def _note_failure(self, cause: str) -> None:
        self._metrics.load_failed()
        self._status.failed(cause)

    # ---- calls

    @overload_returned
    async def ask(
        self, call: ModelCall[Result], supplies: Supplies = NO_SUPPLIES, caller: Caller = ANYONE
    ) -> ModelAnswer[Result] | Wanted:
        """Answers a call from the remembered embedding of its image, or from the supplied pixels.

        Args:
            call: the question about an image.
            supplies: the pixels, if the replica has asked for them.
            caller: the request behind the call.

        Returns:
            The answer.
            Or Wanted, if the replica does not remember the image. If several callers ask for the same image at the
            same time, one is elected and gets Wanted; the others wait for the pixels that it sends. The elected caller
            calls again with the pixels, or is released with `give_up`.
            Or Overloaded, which is returned, not raised: the queue is too long for `caller.wait_s`, or the image, or an
            object of the prompt, does not fit into the device's memory.

        Raises:
            ModelUnavailable: loading failed; the message names the model and the cause.
            InvalidPrompt: the image is too small for its number of crops.
            TooLarge: the answer would hold too many numbers.
        """
        until = time.monotonic() + caller.wait_s
        image = await self._embedded(call.image_id, supplies.pixels, caller, until)
        if image is None:
            return Wanted("pixels")
        return await self._answer(call, image, supplies.pixels, until)

    async def _answer(
        self, call: ModelCall[Any], image: Embedded[Any], pixels: RgbArray | None, until: float
    ) -> ModelAnswer[Any]:
        match call:
            case SegmentCall():
                return await self._segment(call, image, until)
            case EmbedCall():
                size = image.embedding.image_size
                return image.answer(EmbeddedImage(call.image_id, self._settings.model_id, size))
            case AutoCall():
                return await self._auto(call, image, pixels, until)
        raise TypeError(f"{type(call).__name__} is not a call that a Sam2Model answers")

    @overload_returned
    async def track(
        self,
        call: TrackCall,
        frames: FrameBatch | None = None,
        state: TrackState | None = None,
        wait_s: float = math.inf,
    ) -> TrackedFrames | Wanted:
        """Follows objects through some frames of a video.

        Args:
            call: which frames, and the prompts on them.
            frames: the frames, if the replica does not remember their embeddings. A caller hands on the response of
                VideoReader, so that the frames do not pass through the caller.
            state: what is remembered of the objects before these frames, if the replica does not keep it.
            wait_s: seconds until the caller's deadline.

        Returns:
            The masks of each frame.
            Or Wanted, if the frames or the state are needed and missing.
            Or Overloaded, which is returned, not raised.

        Raises:
            ModelUnavailable: loading failed; the message names the model and the cause.
            InvalidRequest: the model cannot follow objects.
            InvalidPrompt: a prompt is on a frame that the file does not hold.
        """
        until = time.monotonic() + wait_s
        answer = await self._tracking.answer(
            call,
            frames,
            state,
            self._track_stage,
            self._wait_s(until),
            lambda: self._embed_stage.check(self._wait_s(until)),
        )
        return answer if isinstance(answer, Wanted) else replace(answer, replica=self._replica_tag)

    async def begin_tracking(self, job: str) -> tuple[str, int]:
        """Takes on a job that follows objects; returns the replica's name, and how many other jobs it has.

        Raises:
            ModelUnavailable: loading failed.
            InvalidRequest: the model cannot follow objects.
        """
        return self._replica_tag, self._tracking.begin(job)

    async def end_tracking(self, job: str) -> None:
        """Forgets a job that has ended, or goes on elsewhere."""
        self._tracking.end(job)

    @serve.batch
    async def _track(self, chunks: "list[Chunk]") -> "list[tuple[TrackedChunk | Overloaded, float]]":
        return await self._track_stage.run_batch(chunks)

    async def give_up(self, image_id: str, caller: str = "") -> None:
        """Releases a caller, if it was elected to send an image's pixels; another waiting caller is then elected."""
        self._cache.give_up(image_id, caller)

    async def forget(self, image_id: str) -> bool:
        """Forgets an image; returns whether it was remembered, or being embedded."""
        return self._cache.forget(image_id)

    # ---- embed

    async def _embedded(
        self, image_id: str, pixels: RgbArray | None, caller: Caller, until: float
    ) -> Embedded[Any] | None:
        """Returns the image's embedding, remembered or else computed from the pixels; None if there are no pixels."""
        self._engine()
        started = time.perf_counter()
        runs: list[float] = []
        if pixels is None:
            embedding = await self._cache.get(
                image_id,
                caller.name if "pixels" in caller.offers else None,
                # The queue is checked before a caller decodes and sends pixels.
                lambda: self._embed_stage.check(self._wait_s(until), self._cache.promised),
            )
        else:

            async def encode() -> "ImageEmbedding":
                embedding, seconds = await self._encode(pixels)
                runs.append(seconds)
                return embedding

            embedding = await self._cache.compute(
                image_id,
                encode,
                caller.name,
                # This caller's own deadline counts; others that wait for the same image may have more time.
                lambda: self._embed_stage.check(self._wait_s(until)),
            )
        if embedding is None:
            return None
        seconds = runs[0] if runs else time.perf_counter() - started
        return Embedded(embedding, "miss" if runs else "hit", seconds)

    async def _encode(self, pixels: RgbArray) -> "tuple[ImageEmbedding, float]":
        """Runs the encoder; returns the image's embedding, and the seconds of the run."""
        with span("embed", height=pixels.shape[0], width=pixels.shape[1]):
            return await self._embed_stage.submit(pixels)

    def _wait_s(self, until: float) -> float:
        """Returns the seconds that a caller with this deadline may wait for a batch."""
        return min(self._config.max_wait_s, until - time.monotonic())

    @serve.batch
    async def _embed(self, images: list[RgbArray]) -> "list[tuple[ImageEmbedding | Overloaded, float]]":
        return await self._embed_stage.run_batch(images)

    # ---- segment

    async def _segment(
        self, call: SegmentCall, image: Embedded[Segmentation], until: float
    ) -> ModelAnswer[Segmentation]:
        if call.answer_size is not None:
            call.answer_size.check(image.embedding.image_size)
        self._decode_stage.check(self._wait_s(until))
        with span("decode", objects=call.prompt.num_objects):
            decoded, decode_s = await self._decode_stage.submit((image.embedding, call.prompt))
        segmentation = sorted_segmentation(
            call.image_id, self._settings.model_id, image.embedding.image_size, *decoded, call.prompt.has_object_axis
        )
        return image.answer(segmentation, decode_s)

    @serve.batch
    async def _decode(
        self, items: "list[tuple[ImageEmbedding, Prompt]]"
    ) -> "list[tuple[DecodedPrompt | Overloaded, float]]":
        return await self._decode_stage.run_batch(items)

    # ---- auto

    async def _auto(
        self, call: AutoCall, image: Embedded[AutomaticMasks], pixels: RgbArray | None, until: float
    ) -> ModelAnswer[AutomaticMasks]:
        """Segments everything in small slices, between which prompts of other requests are decoded.

        Only one such call runs at a time: it is long, and takes memory for all masks that it may keep.
        """
        async with self._auto_turns.turn(until):
            # Imported here, since it imports torch, which is loaded by now.
            from deployments.model.automatic_masks import AutomaticMaskGenerator

            generator = AutomaticMaskGenerator(self._engine(), call.prompt, image.embedding.image_size)
            embedding, decode_s = image.embedding, 0.0
            for crop in generator.crops:
                if crop.layer:
                    embedding, seconds = await self._encode(cast(RgbArray, pixels)[crop.pixels])
                    image.seconds += seconds
                steps = generator.steps(embedding, crop)
                while (step := await self._decode_stage.on_thread(next, steps, DONE))[0] is not DONE:
                    decode_s += step[1]
            masks, seconds = await self._decode_stage.on_thread(
                generator.finish, call.image_id, self._settings.model_id, call.max_numbers
            )
            return image.answer(masks, decode_s + seconds)


def _is_warm() -> bool:
    """Returns whether Serve always keeps a replica of this deployment."""
    autoscaling = serve.get_replica_context()._deployment_config.autoscaling_config
    return autoscaling is None or autoscaling.min_replicas > 0


def _max_ongoing_requests() -> int:
    """Returns how many requests Serve sends to this replica at a time."""
    return int(serve.get_replica_context()._deployment_config.max_ongoing_requests)


def _gpu_fraction() -> float:
    """Returns the share of a GPU that Ray assigned to this replica, which the config file may have changed."""
    return float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
