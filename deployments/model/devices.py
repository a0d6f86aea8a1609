"""What the model runs on: the device and its share of memory, the precision, streams."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pynvml
import torch

from deployments.errors import ModelLoadError

CPU_CACHE_LIMIT_BYTES = 2 * 2**30
"""What an embedding cache takes of the CPU's memory at most, unless told otherwise."""

# Larger runs are no faster on two cores (`make bench`: batches); they only take memory, and make the first one wait.
OBJECTS_PER_THREAD, MOST_OBJECTS = 2, 32

CUDA_MEMORY_ERRORS = (2, 701)
"""cudaErrorMemoryAllocation and cudaErrorLaunchOutOfResources, which leave the context as it was."""

# What a CPU must have to multiply bfloat16 faster than float32, as torch names it; elsewhere it is emulated.
BFLOAT16_CAPABILITIES = ("amx_bf16", "avx512_bf16")


def start_device(device: str, gpu_fraction: float, torch_threads: int | None) -> torch.device:
    """The device to run on, ready for use; `auto` is the GPU where Ray assigned a share of one.

    Args:
        device: `auto`, `cpu` or `cuda`.
        gpu_fraction: share of the GPU that Ray assigned; this process's memory is capped at it.
        torch_threads: CPU threads; None takes all cores, where Ray would have set one for a fraction of a CPU.

    Raises:
        ModelLoadError: a GPU is asked for and torch finds none.
    """
    torch.set_num_threads(torch_threads or len(os.sched_getaffinity(0)))
    if device == "cpu" or (device == "auto" and gpu_fraction == 0):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelLoadError("a GPU was asked for, but torch finds no CUDA device")
    # float32 means float32: cuDNN alone would otherwise round the inputs of convolutions to TF32's 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    cuda = torch.device("cuda")
    if 0 < gpu_fraction < 1:
        limit_gpu_memory(cuda, gpu_fraction, cuda_context_bytes(cuda))
    return cuda


def is_device_lost(error: BaseException) -> bool:
    """Whether an error says that the device's context is broken, which no later call in this process survives.

    An illegal address, a card that fell off the bus, an ECC error: torch has a class for what CUDA reports of itself.
    That memory is full is not one of them, though CUDA may be the one to say so, outside of torch's allocator.
    """
    return isinstance(error, torch.AcceleratorError) and not is_memory_full(error)


def is_memory_full(error: BaseException) -> bool:
    """Whether an error says that a smaller run might fit into the device's memory."""
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) in CUDA_MEMORY_ERRORS
    # TorchScript, which SAM 2's transforms are compiled by, raises torch's own error anew without its type.
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "CUDA out of memory" in str(error)
    )


def check_device(device: torch.device) -> None:
    """Runs something small on the device, and waits for it.

    Raises:
        torch.AcceleratorError: the device's context is broken.
    """
    torch.ones(1, device=device).sum().item()


def limit_gpu_memory(device: torch.device, fraction: float, context_reserve_bytes: int) -> None:
    """Caps this process at its share of the GPU; torch raises OutOfMemoryError beyond it.

    Ray only counts fractions and enforces none. The CUDA context lies outside torch's allocator, so its size is
    subtracted from the share.

    Args:
        device: the CUDA device.
        fraction: share of the GPU that Ray assigned, in (0, 1].
        context_reserve_bytes: what the CUDA context takes of the share.

    Raises:
        ModelLoadError: the share is smaller than the context.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    share = fraction - context_reserve_bytes / total
    if share <= 0:
        raise ModelLoadError(f"{fraction:g} of a GPU of {total} bytes leaves nothing beside the CUDA context")
    torch.cuda.set_per_process_memory_fraction(share, device)


def cuda_context_bytes(device: torch.device) -> int:
    """Starts CUDA on the device and measures what its context takes, outside torch's allocator.

    NVML may not know this process by its id (inside a container); then 600 MiB are assumed, which covers the
    400–600 MiB of current cards.
    """
    torch.zeros(1, device=device)
    used = _used_by_this_process(str(torch.cuda.get_device_properties(device).uuid))
    return 600 * 2**20 if used is None else max(0, used - torch.cuda.memory_reserved(device))


def _used_by_this_process(gpu_uuid: str) -> int | None:
    """Bytes of the GPU's memory that this process holds; None where NVML cannot tell."""
    try:
        pynvml.nvmlInit()
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{gpu_uuid}"))
    except pynvml.NVMLError:
        return None
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)


def choose_precision(setting: str, device: torch.device) -> torch.dtype:
    """The image encoder's precision: what the setting says, or what suits the device.

    Args:
        setting: `float32`, `bfloat16`, or `auto`: bfloat16 where the device has instructions for it, else float32.
        device: what the model runs on.
    """
    if setting == "auto":
        setting = "bfloat16" if _multiplies_bfloat16(device) else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BFLOAT16_CAPABILITIES)


def default_batch_sizes(device: torch.device) -> tuple[int, int]:
    """How many images are embedded, and how many prompts decoded, in one run, unless told otherwise."""
    return (8, 16) if device.type == "cuda" else (1, objects_at_once(device))


def objects_at_once(device: torch.device) -> int:
    """How many objects are decoded in one run. Each takes 27 MB of activations: in one run, 256 would take 7 GB."""
    return MOST_OBJECTS if device.type == "cuda" else min(MOST_OBJECTS, OBJECTS_PER_THREAD * torch.get_num_threads())


def default_cache_bytes(device: torch.device) -> int:
    """How much an embedding cache may take once the model is loaded and warmed up.

    Half of what is then free of this process's share of the GPU, since the other half is for activations; on the CPU,
    whose memory others use too, an eighth of what is available, up to 2 GiB.
    """
    if device.type != "cuda":
        return min(psutil.virtual_memory().available // 8, CPU_CACHE_LIMIT_BYTES)
    free_on_gpu, total = torch.cuda.mem_get_info(device)
    share = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return max(0, min(share - torch.cuda.memory_reserved(device), free_on_gpu) // 2)


def own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A CUDA stream that sees all that was done on the device so far; None on the CPU, which has none."""
    if device.type != "cuda":
        return None
    # The weights were copied in the default stream, which the new one does not wait for.
    torch.cuda.synchronize(device)
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Runs what it encloses on a stream and waits for it at the end, so that any other stream can use the results."""
    if stream is None:
        yield
        return
    with torch.cuda.stream(stream):
        try:
            yield
        finally:
            # After a failure too: kernels that still read an embedding must end before its owner may drop it.
            stream.synchronize()
