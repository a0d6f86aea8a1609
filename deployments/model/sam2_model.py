"""Sam2Model, the GPU deployment: one configured model, its remembered embeddings, batched over requests."""

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import ray
from ray import serve

from deployments.errors import ModelLoadError, ModelUnavailable, Overloaded
from deployments.messages.arrays import RgbArray
from deployments.messages.everything import AutomaticMasks, AutomaticPrompt
from deployments.messages.model_answers import AnswerSize, EmbeddedImage, ModelAnswer, PixelsWanted
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation, sorted_segmentation
from deployments.model.batching import Admission
from deployments.model.embedding_cache import EmbeddingCache
from deployments.model.model_loader import ModelLoader
from deployments.model.refusals import overload_returned
from deployments.model_status import StatusReporter
from deployments.settings import ModelSettings, Sam2ModelConfig, use_compile_cache
from deployments.telemetry.metrics import CacheMetrics, ModelMetrics
from deployments.telemetry.tracing import span

if TYPE_CHECKING:
    from deployments.model.engine import Decoded, Engine, ImageEmbedding

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

DONE = object()

MAX_WAITING_AUTOS = 8
"""Requests for everything that wait for their turn, each perhaps with its pixels."""


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
        self._config = Sam2ModelConfig()
        self._status = StatusReporter(serve.get_replica_context().replica_tag, settings.model_id)
        # One thread each: torch parallelises inside an operation. Two, so that a click on a remembered image does not
        # wait for a batch of new ones.
        self._embed_thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._decode_thread = ThreadPoolExecutor(1, thread_name_prefix="decode")
        # What suits the device, where the configuration does not say, is known once the model is loaded.
        self._configuring = threading.Lock()
        self._default_batch_sizes = (1, 1)
        self._default_cache_bytes = 0
        self._metrics = ModelMetrics(settings.model_id)
        self._embed_rounds = Admission(1, partial(self._metrics.waiting, "embed"))
        self._decode_rounds = Admission(1, partial(self._metrics.waiting, "decode"))
        self._auto_rounds = Admission(1, partial(self._metrics.waiting, "auto"))
        # Half of the places are enough for those who wait; the others stay free for those who bring pixels.
        self._cache: EmbeddingCache[ImageEmbedding] = EmbeddingCache(
            CacheMetrics(settings.model_id), max_waiting=_max_ongoing_requests() // 2
        )
        self._loader = ModelLoader(self._load, self._note_failure, self._config.load_retry_s)
        try:
            self._loader.attempt()
        except ModelLoadError:
            if _is_warm():
                raise
            self._loader.keep_trying()

    # Async, since Serve runs what is not in a thread of its own, and the cache is the event loop's.
    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the deployment's `user_config` (Sam2ModelConfig), at the start and whenever it changes."""
        self._config = Sam2ModelConfig.model_validate(user_config)
        self._loader.first_pause_s = self._config.load_retry_s
        self._configure()

    async def wait_until_ready(self) -> None:
        """Returns once the model can answer.

        Raises:
            ModelUnavailable: loading failed; the message names model and cause.
        """
        self._ready_engine()

    @overload_returned
    async def segment(
        self,
        image_id: str,
        prompt: Prompt,
        pixels: RgbArray | None = None,
        *,
        has_pixels: bool = True,
        sender: str = "",
        answer_size: AnswerSize | None = None,
        wait_s: float = math.inf,
    ) -> ModelAnswer[Segmentation] | PixelsWanted:
        """Decodes one prompt on an image: on the remembered embedding, or on that of the pixels.

        Args:
            image_id: digest of the image.
            prompt: what to segment.
            pixels: `H×W×3` uint8 RGB. Asked without them, a replica that does not remember the image answers
                PixelsWanted, to one of all who ask at the same time; the others wait for it. Who is so elected sends
                the pixels, or calls `give_up`.
            has_pixels: whether the caller could send them; one that cannot is not elected.
            sender: a name of the caller that no other has, the same with the pixels as without, and for `give_up`.
            answer_size: what the answer may hold; only here is the image's size always known.
            wait_s: how long the caller will wait. Where the queue is longer, it is told so at once.

        Returns:
            Also Overloaded, not raised: the queue is too long; or the image, or the prompt's objects, do not fit into
            the device's memory.

        Raises:
            ModelUnavailable: loading failed; the message names model and cause.
            TooLarge: the answer would hold too many numbers.
        """
        started, until = time.perf_counter(), time.monotonic() + wait_s
        runs: list[float] = []
        embedding = await self._embedding(image_id, pixels, sender if has_pixels else None, runs, until)
        if embedding is None:
            return PixelsWanted()
        if answer_size is not None:
            answer_size.check(embedding.image_size)
        embed_s = runs[0] if runs else time.perf_counter() - started
        self._check_queue(self._decode_rounds, self._patience_s(until))
        with span("decode", objects=prompt.num_objects):
            (low_res_logits, iou_predictions), decode_s = await self._in_round(
                self._decode_rounds, self._decode, (embedding, prompt)
            )
        segmentation = sorted_segmentation(
            image_id,
            self._settings.model_id,
            embedding.image_size,
            low_res_logits,
            iou_predictions,
            prompt.has_object_axis,
        )
        return ModelAnswer(segmentation, "miss" if runs else "hit", embed_s, decode_s)

    @overload_returned
    async def embed(
        self, image_id: str, pixels: RgbArray | None = None, *, sender: str = "", wait_s: float = math.inf
    ) -> EmbeddedImage | PixelsWanted:
        """Prepares an image for prompts; see `segment` for the arguments and errors."""
        embedding = await self._embedding(image_id, pixels, sender, [], time.monotonic() + wait_s)
        if embedding is None:
            return PixelsWanted()
        return EmbeddedImage(image_id, self._settings.model_id, embedding.image_size)

    @overload_returned
    async def auto(
        self,
        image_id: str,
        prompt: AutomaticPrompt,
        pixels: RgbArray | None = None,
        *,
        has_pixels: bool = True,
        sender: str = "",
        max_numbers: int | None = None,
        wait_s: float = math.inf,
    ) -> ModelAnswer[AutomaticMasks] | PixelsWanted:
        """Segments everything, in small slices between which prompts of other requests are decoded.

        One such request at a time: they are long, and take memory for all that they may keep.

        Args:
            image_id: digest of the image.
            prompt: the grid of points, and which masks to keep.
            pixels: see `segment`; with crops they are always needed, since only the whole image is remembered.
            has_pixels: see `segment`.
            sender: see `segment`.
            max_numbers: how many numbers the masks may be, see AnswerSize.
            wait_s: see `segment`.

        Returns:
            Also Overloaded, not raised: too many such requests wait, or the device's memory is too small.

        Raises:
            ModelUnavailable: loading failed; the message names model and cause.
            InvalidPrompt: the image is too small for so many crops.
            TooLarge: there are too many masks.
        """
        started, until = time.perf_counter(), time.monotonic() + wait_s
        runs: list[float] = []
        embedding = await self._embedding(image_id, pixels, sender if has_pixels else None, runs, until)
        if embedding is None:
            return PixelsWanted()
        embed_s = runs[0] if runs else time.perf_counter() - started
        if not prompt.crop_n_layers:
            # Whoever waits for a turn need not hold them.
            pixels = None
        async with self._turn_for_everything(until):
            return await self._auto(image_id, prompt, embedding, pixels, runs, embed_s, max_numbers)

    @asynccontextmanager
    async def _turn_for_everything(self, until: float) -> AsyncIterator[None]:
        """One request for everything at a time; Overloaded if it will not be, or was not, its turn in time.

        Those who wait here are few, and long jobs: `max_wait_s` is not for them.
        """
        rounds = self._auto_rounds
        if rounds.waiting >= MAX_WAITING_AUTOS:
            raise Overloaded("overloaded: too many requests for everything wait for their turn")
        self._check_queue(rounds, until - time.monotonic())
        async with AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await turn.enter_async_context(rounds)
            except TimeoutError as error:
                raise Overloaded("overloaded: other requests for everything take too long") from error
            with rounds.run():
                yield

    async def _auto(
        self,
        image_id: str,
        prompt: AutomaticPrompt,
        embedding: "ImageEmbedding",
        pixels: RgbArray | None,
        runs: list[float],
        embed_s: float,
        max_numbers: int | None,
    ) -> ModelAnswer[AutomaticMasks]:
        # Loaded with the engine: it brings torch.
        from deployments.model.automatic_masks import AutomaticMaskGenerator

        cache: Literal["hit", "miss"] = "miss" if runs else "hit"
        generator = AutomaticMaskGenerator(self._ready_engine(), prompt, embedding.image_size)
        decode_s = 0.0
        for crop in generator.crops:
            if crop.layer:
                assert pixels is not None
                embedding = await self._encode(pixels[crop.pixels], runs)
                embed_s += runs[-1]
            steps = generator.steps(embedding, crop)
            while (step := await self._on_decode_thread(next, steps, DONE))[0] is not DONE:
                decode_s += step[1]
        masks, seconds = await self._on_decode_thread(generator.finish, image_id, self._settings.model_id, max_numbers)
        return ModelAnswer(masks, cache, embed_s, decode_s + seconds)

    async def give_up(self, image_id: str, sender: str = "") -> None:
        """Says that a sender, if it was elected to send an image's pixels, will not."""
        self._cache.give_up(image_id, sender)

    async def forget(self, image_id: str) -> bool:
        """Forgets an image; whether it was remembered, or on its way."""
        return self._cache.forget(image_id)

    async def check_health(self) -> None:
        """Serve asks from time to time, and replaces a replica whose answer is an error, or takes too long."""
        if self._loader.is_loaded:
            await self._on_decode_thread(self._ready_engine().check_device)

    # ---- batches

    async def _embedding(
        self, image_id: str, pixels: RgbArray | None, sender: str | None, runs: list[float], until: float
    ) -> "ImageEmbedding | None":
        """The image's embedding, remembered or from the pixels; None if there is neither."""
        self._ready_engine()
        if pixels is None:
            # The queue is looked at before anybody decodes and sends them.
            return await self._cache.get(
                image_id,
                sender,
                lambda: self._check_queue(self._embed_rounds, self._patience_s(until), self._cache.promised),
            )
        return await self._cache.compute(
            image_id,
            lambda: self._encode(pixels, runs),
            sender or "",
            # By this caller's own patience; who waits for the same image may have more.
            lambda: self._check_queue(self._embed_rounds, self._patience_s(until)),
        )

    def _patience_s(self, until: float) -> float:
        """How long a caller with that deadline may wait for a batch."""
        return min(self._config.max_wait_s, until - time.monotonic())

    def _check_queue(self, rounds: Admission, patience_s: float, announced: int = 0) -> None:
        """Refuses now what would be refused, or given up, after a long wait."""
        expected_s = rounds.expected_wait_s(announced)
        if expected_s > patience_s:
            model_id = self._settings.model_id
            raise Overloaded(f"overloaded: the queue of {model_id} takes about {expected_s:.1f} s", expected_s)

    async def _encode(self, pixels: RgbArray, runs: list[float]) -> "ImageEmbedding":
        """The image's embedding; appends the seconds of the encoder's run."""
        with span("embed", height=pixels.shape[0], width=pixels.shape[1]):
            embedding, seconds = await self._in_round(self._embed_rounds, self._embed, pixels)
        runs.append(seconds)
        return embedding

    @staticmethod
    async def _in_round(
        rounds: Admission, batched: Callable[[Any], Awaitable[tuple[T | Overloaded, float]]], item: Any
    ) -> tuple[T, float]:
        """One item's result out of its batch, and the seconds that the batch ran."""
        async with rounds:
            result, seconds = await batched(item)
        if isinstance(result, Overloaded):
            raise result
        return result, seconds

    async def _on_decode_thread(self, run: Callable[..., T], *arguments: Any) -> tuple[T, float]:
        """What a function returns, and the seconds that it took. Prompts that came before have their turn first."""
        return await asyncio.get_running_loop().run_in_executor(self._decode_thread, _timed, run, *arguments)

    @serve.batch
    async def _embed(self, images: list[RgbArray]) -> "list[tuple[ImageEmbedding | Overloaded, float]]":
        return await self._embed_batch(images)

    async def _embed_batch(self, images: list[RgbArray]) -> "list[tuple[ImageEmbedding | Overloaded, float]]":
        self._metrics.batch("embed", len(images))
        with self._embed_rounds.run():
            return await _timed_batch(self._embed_thread, self._ready_engine().embed_each, images)

    # No wait: who comes while a batch is at work forms the next one.
    @serve.batch(batch_wait_timeout_s=0)
    async def _decode(self, items: "list[tuple[ImageEmbedding, Prompt]]") -> "list[tuple[Decoded | Overloaded, float]]":
        return await self._decode_batch(items)

    async def _decode_batch(
        self, items: "list[tuple[ImageEmbedding, Prompt]]"
    ) -> "list[tuple[Decoded | Overloaded, float]]":
        self._metrics.batch("decode", len(items))
        with self._decode_rounds.run():
            return await _timed_batch(self._decode_thread, self._ready_engine().decode_each, items)

    # ---- loading

    def _configure(self) -> None:
        """Sets batches and cache, with what suits the device where the configuration leaves it open."""
        # In turns: the loader's thread calls this too, and must not bring back what has just been replaced.
        with self._configuring:
            self._apply(self._config)

    def _apply(self, config: Sam2ModelConfig) -> None:
        images, prompts = self._default_batch_sizes
        self._embed_rounds.size = config.max_batch_size or images
        self._embed.set_max_batch_size(self._embed_rounds.size)  # type: ignore[attr-defined]
        self._embed.set_batch_wait_timeout_s(config.batch_wait_timeout_s)  # type: ignore[attr-defined]
        self._decode_rounds.size = config.max_decode_batch_size or prompts
        self._decode.set_max_batch_size(self._decode_rounds.size)  # type: ignore[attr-defined]
        max_bytes = self._default_cache_bytes if config.cache_bytes is None else config.cache_bytes
        self._cache.configure(max_bytes, config.cache_ttl_s, config.pixels_timeout_s)

    def _ready_engine(self) -> "Engine":
        try:
            return self._loader.engine()
        except ModelLoadError as error:
            raise ModelUnavailable(f"model {self._settings.model_id} failed to load: {error.message}") from error

    def _load(self) -> "Engine":
        """Loads the weights, moves them to the device, and runs the model once, so that no request pays for that."""
        # Imported here: they bring torch, which takes seconds, and app.py imports this file only to draw the graph.
        import deployments.model.automatic_masks  # noqa: F401 for `auto`, whose first request is not to wait for it
        from deployments.model.checkpoints import load_model
        from deployments.model.devices import (
            choose_precision,
            default_batch_sizes,
            default_cache_bytes,
            start_device,
        )
        from deployments.model.engine import Engine

        settings, started = self._settings, time.perf_counter()
        model = load_model(settings, self._status.loading)
        self._status.loading("compiling and warming up" if settings.torch_compile else "warming up")
        device = start_device(settings.device, _gpu_fraction(), settings.torch_threads)
        use_compile_cache(settings.compile_cache)
        batch_sizes = settings.compile_batch_sizes if settings.torch_compile else ()
        engine = Engine(model, device, choose_precision(settings.precision, device), batch_sizes)
        engine.warm_up()
        self._default_batch_sizes = default_batch_sizes(device)
        self._default_cache_bytes = default_cache_bytes(device)
        # Perhaps on the loader's thread, but no request has reached batches or cache yet.
        self._configure()
        self._metrics.loaded(time.perf_counter() - started)
        self._status.ready()
        return engine

    def _note_failure(self, cause: str) -> None:
        self._metrics.load_failed()
        self._status.failed(cause)


async def _timed_batch(
    thread: ThreadPoolExecutor, run: Callable[[Sequence[Any]], list[T]], items: Any
) -> list[tuple[T, float]]:
    """Runs a batch on its thread; each result with the seconds that the run took."""
    results, seconds = await asyncio.get_running_loop().run_in_executor(thread, _timed, run, items)
    return [(result, seconds) for result in results]


def _timed(run: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """What a function returns, and the seconds that it took. Ends the process if the device is lost."""
    started = time.perf_counter()
    try:
        return run(*arguments), time.perf_counter() - started
    # Handed on, whatever it is, unless nothing would work here any more.
    except Exception as error:
        _end_if_device_is_lost(error)
        raise


def _end_if_device_is_lost(error: Exception) -> None:
    """Then who waits here is told at once, by the replica's death, and asks another; Serve starts a new one."""
    # By now torch is there.
    from deployments.model.devices import is_device_lost

    if is_device_lost(error):
        logger.critical("this replica ends, since its device is lost: %s", error)
        logging.shutdown()
        os._exit(1)


def _is_warm() -> bool:
    """Whether Serve always keeps a replica of this deployment."""
    autoscaling = serve.get_replica_context()._deployment_config.autoscaling_config
    return autoscaling is None or autoscaling.min_replicas > 0


def _max_ongoing_requests() -> int:
    """How many requests Serve sends to this replica at a time."""
    return int(serve.get_replica_context()._deployment_config.max_ongoing_requests)


def _gpu_fraction() -> float:
    """The share of a GPU that Ray assigned to this replica; the config file may have replaced the code's."""
    return float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
