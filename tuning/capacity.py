"""From what was measured of one model on one machine to its settings, and to what a load takes. Pure arithmetic.

A *device* is one GPU, or the CPU cores that one replica computes on. What a replica needs of its device's memory:

    context + (weights + largest encoder run + largest decoder run + remembered embeddings) ÷ (1 − SPARE) ≤ device ÷ n

for n replicas a device: images and prompts run at the same time, each in a thread. `devices.start_device` caps torch at
`num_gpus` less the context, so a batch that needs more is run in halves: slower, but answered.

What a load takes, for R images a second, each with p prompts, of which the share h is still remembered by a replica:

    busy seconds of devices, each second  = R × (1 − h) × seconds an image + R × p × seconds a prompt
    devices                               = ceil(busy ÷ u)
    replicas                              = devices × n
    processors for RequestParser          = (R × seconds to parse + R × p × (REQUEST_S + bytes ÷ PASSED_ON)) ÷ u
    processors for ResponseEncoder        = R × p × seconds to encode ÷ u
    bits to clients, each second          = 8 × R × p × bytes
    cost of a million images              = devices × price an hour ÷ 3600 ÷ R × 10⁶

Utilisation u leaves room for uneven arrivals: at 0.65, a queue of single requests waits for about as long as a request
takes, at 0.9 for five times as long. Replicas on one device share its arithmetic: a second one hides what the first
does on its processor, uploads and Python, and survives it, but the measured seconds do not halve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NEAR = 0.05
"""A smaller batch whose throughput is within this share of the best one's is preferred: it waits and holds less."""

SPARE = 0.1
"""Of what torch may take: for fragments, and for the masks that segmenting everything keeps."""

FEWEST_REMEMBERED = 64
"""Images that a replica must be able to remember beside its runs, or its share of the device is too small."""

MOST_SHARES = 16
REMEMBERED_UNIT = 10**6

LEAST_PLACES = 128
"""`max_ongoing_requests` in deployments/app.py. Calls cost little while they wait."""

REQUEST_S = 0.02
"""Assumed, not measured here: a processor's time in RequestParser for HTTP, the form and Ray's calls of a request."""

PASSED_ON = 300e6
"""Assumed, not measured here: bytes a second of an answer that a processor passes from Ray to the client's socket."""


class DoesNotFit(Exception):
    """The device's memory is too small for the model."""


@dataclass(frozen=True)
class Run:
    """One run of encoder or decoder: its seconds, and the memory that it takes beside the weights."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Measured:
    """One model on one machine.

    Attributes:
        model_id: the model.
        on_gpu: whether the device is a GPU.
        cores: of the machine, for this process.
        memory_bytes: of the GPU; on a CPU, what is available to the replica.
        context_bytes: what the process takes of it before there is a model: the CUDA context; Python and torch.
        weights_bytes: parameters and buffers.
        embedding_bytes: one remembered image.
        default_cache_bytes: what the service would remember by itself, where others use the memory too; on a GPU None.
        encoder: runs by their number of images; those that fit.
        decoder: runs by their number of prompts; the largest is what the engine decodes at once.
        parse_s: from a 1080p JPEG's bytes to its pixels and its id.
        encode_s: by response format, from low-resolution logits to the text of a 1080p answer, on one core.
        answer_bytes: by response format, its size.
    """

    model_id: str
    on_gpu: bool
    cores: int
    memory_bytes: int
    context_bytes: int
    weights_bytes: int
    embedding_bytes: int
    default_cache_bytes: int | None
    encoder: Mapping[int, Run]
    decoder: Mapping[int, Run]
    parse_s: float
    encode_s: Mapping[str, float]
    answer_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Proposal:
    """Settings of the model's deployment. Of `smallest_share`: what `num_gpus` would do if the model is rarely used."""

    num_gpus: float
    replicas_a_device: int
    smallest_share: float
    max_batch_size: int
    max_decode_batch_size: int
    cache_bytes: int
    remembered: int
    target_ongoing_requests: int
    max_ongoing_requests: int
    seconds_an_image: float
    seconds_a_prompt: float


@dataclass(frozen=True)
class Load:
    """What is to be served; see the module's docstring."""

    images_per_second: float
    hit_rate: float = 0.0
    prompts_per_image: float = 1.0
    response_format: str = "json"
    utilisation: float = 0.65


@dataclass(frozen=True)
class Plan:
    """What a load takes. `processors` are those of parsers, encoders and, one each, of replicas on GPUs."""

    devices: int
    replicas: int
    busy: float
    parsers: int
    encoders: int
    processors: int
    machines: int | None
    gigabits_per_second: float


def throughput(runs: Mapping[int, Run]) -> dict[int, float]:
    """Images or prompts a second, by the size of the run."""
    return {size: size / run.seconds for size, run in runs.items()}


def best_size(runs: Mapping[int, Run]) -> int:
    """The smallest run whose throughput is near the best."""
    rates = throughput(runs)
    return min(size for size, rate in rates.items() if rate >= (1 - NEAR) * max(rates.values()))


def worth_growing(rates: Sequence[float]) -> bool:
    """Whether a larger run may still be faster: not, if the last two sizes brought nothing over all before them."""
    return len(rates) < 3 or max(rates[-2:]) > (1 + NEAR) * max(rates[:-2])


def share(replicas: int) -> float:
    """1/n in Ray's precision of 0.0001, rounded down: three times 0.3334 would be more than one GPU."""
    return math.floor(10_000 / replicas) / 10_000


def room(measured: Measured, replicas: int, images: int) -> int:
    """Bytes that are left for embeddings, with runs of so many images and so many replicas on the device."""
    usable = (measured.memory_bytes * share(replicas) - measured.context_bytes) * (1 - SPARE)
    # Whatever max_decode_batch_size: a single request may have as many objects as the engine decodes at once.
    decoding = max(run.memory_bytes for run in measured.decoder.values())
    return int(usable - measured.weights_bytes - measured.encoder[images].memory_bytes - decoding)


def propose(measured: Measured, most_replicas: int = 2) -> Proposal:
    """Settings for the measured model.

    As many replicas on a GPU as are wanted, unless their smaller shares allow only batches that are slower by more
    than NEAR; on a CPU one, which takes all cores.

    Raises:
        DoesNotFit: not even a single image does.
    """
    shares = range(most_replicas if measured.on_gpu else 1, 0, -1)
    fitting = {replicas: runs for replicas in shares if (runs := _fitting(measured, replicas))}
    if not fitting:
        raise DoesNotFit(
            f"{measured.model_id}: {measured.memory_bytes / 1e9:.1f} GB are too small for an image at a time and "
            f"{FEWEST_REMEMBERED} remembered ones"
        )
    fastest = max(max(throughput(runs).values()) for runs in fitting.values())
    replicas, runs = next(
        (replicas, runs) for replicas, runs in fitting.items() if max(throughput(runs).values()) >= (1 - NEAR) * fastest
    )
    return _proposal(measured, replicas, best_size(runs))


def _fitting(measured: Measured, replicas: int) -> dict[int, Run]:
    """The encoder's runs that leave room enough, with so many replicas on the device."""
    wanted = FEWEST_REMEMBERED * measured.embedding_bytes
    return {size: run for size, run in measured.encoder.items() if room(measured, replicas, size) >= wanted}


def _proposal(measured: Measured, replicas: int, images: int) -> Proposal:
    prompts = best_size(measured.decoder)
    cache_bytes = room(measured, replicas, images)
    if measured.default_cache_bytes is not None:
        cache_bytes = min(cache_bytes, measured.default_cache_bytes)
    cache_bytes -= cache_bytes % REMEMBERED_UNIT
    most = next(count for count in range(MOST_SHARES, 0, -1) if _fitting(measured, count))
    return Proposal(
        num_gpus=share(replicas) if measured.on_gpu else 0,
        replicas_a_device=replicas,
        smallest_share=share(most) if measured.on_gpu else 0,
        max_batch_size=images,
        max_decode_batch_size=prompts,
        cache_bytes=cache_bytes,
        remembered=cache_bytes // measured.embedding_bytes,
        # On the average one batch at work: with fewer, batches are half empty; with more, others wait for the next one.
        target_ongoing_requests=max(2, images),
        # Half of the places are for those who wait for other requests' pixels (sam2_model.py); the others must hold the
        # batches at work, and the next ones.
        max_ongoing_requests=max(LEAST_PLACES, 4 * (images + prompts)),
        seconds_an_image=measured.encoder[images].seconds / images,
        seconds_a_prompt=measured.decoder[prompts].seconds / prompts,
    )


def plan(measured: Measured, proposal: Proposal, load: Load) -> Plan:
    """What a load takes; see the module's docstring for the formulas."""
    answers = load.images_per_second * load.prompts_per_image
    new_images = load.images_per_second * (1 - load.hit_rate)
    answer_bytes = measured.answer_bytes[load.response_format]
    busy = new_images * proposal.seconds_an_image + answers * proposal.seconds_a_prompt
    devices = max(1, math.ceil(busy / load.utilisation))
    parsing = load.images_per_second * measured.parse_s + answers * (REQUEST_S + answer_bytes / PASSED_ON)
    encoding = answers * measured.encode_s[load.response_format]
    parsers, encoders = (max(1, math.ceil(seconds / load.utilisation)) for seconds in (parsing, encoding))
    replicas = devices * proposal.replicas_a_device
    # A replica on a CPU takes all cores of its machine; what else there is to do takes its turns with it.
    cores = busy * measured.cores + parsing + encoding
    return Plan(
        devices=devices,
        replicas=replicas,
        busy=busy,
        parsers=parsers,
        encoders=encoders,
        processors=parsers + encoders + (replicas if measured.on_gpu else 0),
        machines=None if measured.on_gpu else max(devices, math.ceil(cores / load.utilisation / measured.cores)),
        gigabits_per_second=8e-9 * answers * answer_bytes,
    )


def cost_of_a_million(devices: int, images_per_second: float, price_per_hour: float) -> float:
    """What the devices cost while a million images are served at that rate."""
    return devices * price_per_hour / 3600 / images_per_second * 1e6
