"""What `python -m tuning` measures: memory and time of the real engine, and of what runs beside it on the CPU.

Images are 1080p. Times are medians of a few runs, after one that warms up and whose memory is watched.
"""

import ctypes
import io
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from types import TracebackType

import numpy as np
import psutil
import torch
from PIL import Image

from deployments.encoding.response_encoder import encode_piece
from deployments.errors import Overloaded
from deployments.machine import available_memory, usable_cores
from deployments.messages.answer_format import RESPONSE_FORMATS, AnswerFormat, ResponseFormat
from deployments.messages.arrays import LOW_RES_SIZE, RgbArray
from deployments.messages.georeference import Georeference
from deployments.messages.pieces import cut
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation, sorted_segmentation
from deployments.model.checkpoints import load_model
from deployments.model.devices import (
    choose_precision,
    cuda_context_bytes,
    default_cache_bytes,
    limit_compilers,
    start_device,
)
from deployments.model.engine import Engine, ImageEmbedding
from deployments.parsing.images import identify
from deployments.settings import Limits, ModelSettings, RequestParserConfig, use_compile_cache
from tuning.capacity import Measured, Run, throughput, worth_growing

FULL_HD = (1920, 1080)
SAMPLE_EVERY_S = 0.002

SOMEWHERE = Georeference((10.0, 0.0, 500_000.0, 0.0, -10.0, 5_500_000.0), "EPSG:32633", True)
"""Of made-up masks."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How long to take: runs of each size, the largest of them, and seconds after which no more or larger ones."""

    repeats: int = 3
    most_images: int = 64
    seconds_a_size: float = 8.0


def measure(settings: ModelSettings, effort: Effort, say: Say) -> Measured:
    """Loads the model as a replica does, alone on the device, and measures it.

    Raises:
        ModelLoadError: the model cannot be loaded.
        Overloaded: the device's memory is too small for a single image.
    """
    # As if Ray had assigned a whole GPU: what share is enough is to be found out.
    device = start_device(settings.device, float(torch.cuda.is_available()), settings.torch_threads)
    memory, context = _memory(device)
    model = load_model(settings, lambda what, *_: say(what))
    use_compile_cache(settings.compile_cache)
    if settings.torch_compile:
        limit_compilers()
    compiled = settings.compile_batch_sizes if settings.torch_compile else ()
    engine = Engine(model, device, choose_precision(settings.precision, device), compiled)
    engine.warm_up()
    default_cache = None if device.type == "cuda" else default_cache_bytes(device)
    encoder = _encoder_runs(engine, compiled, effort, say)
    [embedding] = embed(engine, [_image(0)])
    parse_s, encode_s, answer_bytes = beside_the_engine(effort)
    return Measured(
        model_id=settings.model_id,
        on_gpu=device.type == "cuda",
        cores=usable_cores(),
        memory_bytes=memory,
        context_bytes=context,
        weights_bytes=sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers())),
        embedding_bytes=embedding.nbytes,
        default_cache_bytes=default_cache,
        encoder=encoder,
        decoder=_decoder_runs(engine, embedding, effort, say),
        parse_s=parse_s,
        encode_s=encode_s,
        answer_bytes=answer_bytes,
    )


def _memory(device: torch.device) -> tuple[int, int]:
    """The device's memory, and what this process takes of it before there is a model."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, cuda_context_bytes(device)
    resident = psutil.Process().memory_info().rss
    return available_memory() + resident, resident


# ---- runs of the model


def embed(engine: Engine, images: list[RgbArray]) -> list[ImageEmbedding]:
    """The embeddings of some images; returns when the device has finished."""
    embeddings = engine.embed(images)
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    return embeddings


def _encoder_runs(engine: Engine, compiled: Sequence[int], effort: Effort, say: Say) -> dict[int, Run]:
    """Runs of 1, 2, 4, … images, until they no longer fit, or are no longer faster."""
    runs: dict[int, Run] = {}
    for size in compiled or _powers_of_two(effort.most_images):
        images = [_image(index) for index in range(size)]
        run = _run(engine, partial(embed, engine, images), effort)
        if run is None:
            say(f"encoder: {size} images do not fit")
            break
        runs[size] = run
        say(f"encoder: {run.seconds / size:.4g} s an image in runs of {size}, {run.memory_bytes / 1e6:,.0f} MB")
        too_long = run.seconds > effort.seconds_a_size
        if too_long or not worth_growing(list(throughput(runs).values())) or _would_fill_memory(engine.device, run):
            break
    if not runs:
        raise Overloaded("one image of this model does not fit into the device's free memory")
    return runs


def _copied(embedding: ImageEmbedding) -> ImageEmbedding:
    finer = tuple(one.clone() for one in embedding.high_res_feats)
    return replace(embedding, image_embed=embedding.image_embed.clone(), high_res_feats=finer)


def _decoder_runs(engine: Engine, embedding: ImageEmbedding, effort: Effort, say: Say) -> dict[int, Run]:
    """Runs of 1, 2, 4, … prompts, each on an image of its own, up to what the engine decodes at once."""
    runs: dict[int, Run] = {}
    for size in sorted({*_powers_of_two(engine.objects_at_once), engine.objects_at_once}):
        # Copies, which the decoder takes for different images, as those of requests are.
        items = [(_copied(embedding), Prompt([[100 + 7 * index, 200]], [1])) for index in range(size)]
        run = _run(engine, partial(engine.decode, items), effort)
        if run is None:
            break
        runs[size] = run
        say(f"decoder: {run.seconds / size:.4g} s a prompt in runs of {size}, {run.memory_bytes / 1e6:,.0f} MB")
    if not runs:
        raise Overloaded("one prompt does not fit into the device's free memory")
    return runs


def _powers_of_two(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length())]


def _run(engine: Engine, call: Callable[[], object], effort: Effort) -> Run | None:
    """Memory and time of a call; None if the device's memory is too small for it."""
    failures = _failed_allocations(engine.device)
    try:
        memory = peak_bytes(engine.device, call)
        if _failed_allocations(engine.device) > failures:
            # The engine ran it in halves.
            return None
        return Run(_median_seconds(call, effort), memory)
    except Overloaded:
        return None


def _failed_allocations(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device)["num_ooms"]) if device.type == "cuda" else 0


def _would_fill_memory(device: torch.device, last: Run) -> bool:
    """Whether a run of twice the size could take a CPU's memory from others: nothing there says no in time."""
    return device.type != "cuda" and 8 * last.memory_bytes > available_memory()


def _median_seconds(call: Callable[[], object], effort: Effort) -> float:
    """The median of a few calls; of fewer, if they take long."""
    seconds: list[float] = []
    while len(seconds) < effort.repeats and sum(seconds) < effort.seconds_a_size:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


# ---- memory


def peak_bytes(device: torch.device, call: Callable[[], object]) -> int:
    """The most memory that a call takes on the device beside what was in use before."""
    if device.type != "cuda":
        _return_freed_memory()
        with ResidentMemory() as resident:
            call()
        return resident.growth
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    # Reserved, not allocated: a replica's share of the GPU bounds what torch reserves.
    return torch.cuda.max_memory_reserved(device) - before


def _return_freed_memory() -> None:
    """Gives back what malloc keeps of the run before, or it would not count for this one."""
    # Only glibc has it.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class ResidentMemory:
    """Watches, in a thread, how far this process's resident memory grows while the context lasts."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="resident-memory", daemon=True)
        self._before = self._peak = self._resident()

    def __enter__(self) -> "ResidentMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """From the start to the peak."""
        return self._peak - self._before

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            self._peak = max(self._peak, self._resident())

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)


# ---- what runs beside the engine, on one core


def beside_the_engine(effort: Effort) -> tuple[float, dict[str, float], dict[str, int]]:
    """Seconds to parse an image; seconds to encode an answer, and its bytes, by response format."""
    buffer = io.BytesIO()
    Image.fromarray(_image(0)).save(buffer, "JPEG", quality=90)
    limits = Limits()
    parse_s = _warm_median(lambda: identify(buffer.getvalue(), limits).decode(limits), effort)
    masks = made_up_masks()
    texts = {form: partial(encoded_bytes, masks, form) for form in RESPONSE_FORMATS}
    encode_s: dict[str, float] = {form: _warm_median(text, effort) for form, text in texts.items()}
    return parse_s, encode_s, {form: text() for form, text in texts.items()}


def _warm_median(call: Callable[[], object], effort: Effort) -> float:
    call()
    return _median_seconds(call, effort)


@cache
def _image(seed: int) -> RgbArray:
    """Smooth noise; a new seed is a new image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(FULL_HD, Image.Resampling.BICUBIC))


def made_up_masks() -> Segmentation:
    """Three discs with wavy edges: masks of trained models are as smooth, those of random weights are not."""
    y, x = np.mgrid[-1 : 1 : LOW_RES_SIZE * 1j, -1 : 1 : LOW_RES_SIZE * 1j]
    edge = 1 + 0.1 * np.sin(7 * np.arctan2(y, x))
    logits = np.stack([12 * (1 - np.hypot(x, y) / (radius * edge)) for radius in (0.3, 0.5, 0.8)])
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    return sorted_segmentation("0" * 64, "made up", FULL_HD[::-1], logits[None].astype(np.float32), scores, False)


def encoded_bytes(masks: Segmentation, form: ResponseFormat) -> int:
    """Writes an answer as ResponseEncoder does, piece by piece; returns its size."""
    answer_format = AnswerFormat(form, return_logits=form == "json").placed(SOMEWHERE)
    return sum(map(len, _pieces(masks, answer_format)))


def _pieces(masks: Segmentation, answer_format: AnswerFormat) -> Iterator[bytes]:
    for piece in cut(masks, answer_format, RequestParserConfig().band_bytes):
        yield encode_piece(piece, answer_format)
