"""The device that the model runs on: its share of memory, the precision, CUDA streams."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml
import torch

from deployments.errors import ModelLoadError
from deployments.machine import available_memory, usable_cores

CPU_CACHE_LIMIT_BYTES = 2 * 2**30
"""The most of the CPU's memory that an embedding cache takes by default."""

# Larger runs are no faster on two cores (`make bench`: batches); they only take memory and delay the first result.
OBJECTS_PER_THREAD, MOST_OBJECTS = 2, 32

CUDA_MEMORY_ERRORS = (2, 701)
"""cudaErrorMemoryAllocation and cudaErrorLaunchOutOfResources, which leave the CUDA context intact."""

# torch's names for the instructions that make bfloat16 faster than float32 on a CPU; without them it is emulated.
BFLOAT16_CAPABILITIES = ("amx_bf16", "avx512_bf16")


def start_device(device: str, gpu_fraction: float, torch_threads: int | None) -> torch.device:
    """Returns the device to run on, ready for use; `auto` is the GPU where Ray assigned a share of one.

    Args:
        device: `auto`, `cpu` or `cuda`.
        gpu_fraction: share of the GPU that Ray assigned; also caps this process's GPU memory.
        torch_threads: CPU threads; None takes all usable cores, although Ray sets one thread for a fraction of a CPU.

    Raises:
        ModelLoadError: a GPU is requested and torch finds none.
    """
    torch.set_num_threads(torch_threads or usable_cores())
    if device == "cpu" or (device == "auto" and gpu_fraction == 0):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelLoadError("a GPU was asked for, but torch finds no CUDA device")
    # Keeps float32 exact: by default, cuDNN would round the inputs of convolutions to TF32's 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    cuda = torch.device("cuda")
    if 0 < gpu_fraction < 1:
        limit_gpu_memory(cuda, gpu_fraction, cuda_context_bytes(cuda))
    return cuda


def is_device_lost(error: BaseException) -> bool:
    """Returns whether an error means that the device's context is broken, so that every later call will fail too.

    Examples are an illegal address, a card that fell off the bus, and an ECC error: torch has one class for all errors
    that CUDA itself reports. A full memory is no such error, even if CUDA reports it and not torch's allocator.
    """
    return isinstance(error, torch.AcceleratorError) and not is_memory_full(error)


def is_memory_full(error: BaseException) -> bool:
    """Returns whether an error means that the device's memory is full, so that a smaller run might fit."""
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) in CUDA_MEMORY_ERRORS
    # torch.compile raises an error that it meets while it compiles as a RuntimeError of its own.
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "CUDA out of memory" in str(error)
    )


def check_device(device: torch.device) -> None:
    """Runs a small kernel on the device and waits for its result.

    Raises:
        torch.AcceleratorError: the device's context is broken.
    """
    torch.ones(1, device=device).sum().item()


def limit_gpu_memory(device: torch.device, fraction: float, context_reserve_bytes: int) -> None:
    """Caps this process at its share of the GPU; torch raises OutOfMemoryError beyond it.

    Ray counts fractions but does not enforce them. The CUDA context is outside torch's allocator, so its size is
    subtracted from the share.

    Args:
        device: the CUDA device.
        fraction: share of the GPU that Ray assigned, in (0, 1].
        context_reserve_bytes: bytes of the share that the CUDA context takes.

    Raises:
        ModelLoadError: the share is smaller than the context.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    share = fraction - context_reserve_bytes / total
    if share <= 0:
        raise ModelLoadError(f"{fraction:g} of a GPU of {total} bytes is no more than the CUDA context takes")
    torch.cuda.set_per_process_memory_fraction(share, device)


def cuda_context_bytes(device: torch.device) -> int:
    """Starts CUDA on the device and measures the bytes that its context takes outside torch's allocator.

    Inside a container NVML may not know this process by its id; then 600 MiB are assumed, which covers the 400–600 MiB
    of current cards.
    """
    torch.zeros(1, device=device)
    used = _used_by_this_process(str(torch.cuda.get_device_properties(device).uuid))
    return 600 * 2**20 if used is None else max(0, used - torch.cuda.memory_reserved(device))


def _used_by_this_process(gpu_uuid: str) -> int | None:
    """Returns the bytes of the GPU's memory that this process holds; None where NVML does not know."""
    try:
        pynvml.nvmlInit()
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{gpu_uuid}"))
    except pynvml.NVMLError:
        return None
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)


def choose_precision(setting: str, device: torch.device) -> torch.dtype:
    """Returns the image encoder's precision: the one that is set, or the one that suits the device.

    Args:
        setting: `float32`, `bfloat16`, or `auto`: bfloat16 where the device has instructions for it, else float32.
        device: the device that the model runs on.
    """
    if setting == "auto":
        setting = "bfloat16" if multiplies_bfloat16(device) else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Returns whether the device has instructions for bfloat16, which is emulated elsewhere."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BFLOAT16_CAPABILITIES)


def limit_compilers() -> None:
    """Has torch.compile start no more compilers at a time than there are usable cores. Call before compiling.

    Its own default, up to 32, does not know of quotas; each is a process that holds some hundred megabytes.
    """
    from torch._inductor import config

    config.compile_threads = min(config.compile_threads or 1, usable_cores())


def default_batch_sizes(device: torch.device) -> tuple[int, int]:
    """Returns how many images are embedded, and how many prompts decoded, in one run by default."""
    return (8, 16) if device.type == "cuda" else (1, objects_at_once(device))


def objects_at_once(device: torch.device) -> int:
    """Returns how many objects are decoded in one run. Each takes 27 MB of activations; 256 at once would take 7 GB."""
    return MOST_OBJECTS if device.type == "cuda" else min(MOST_OBJECTS, OBJECTS_PER_THREAD * torch.get_num_threads())


def default_cache_bytes(device: torch.device) -> int:
    """Returns the default size of the embedding cache in bytes. Call after the model is loaded and warmed up.

    On a GPU, half of what is then free in this process's share of the memory; the other half is for activations. On the
    CPU, whose memory is shared with other processes, an eighth of the available memory, up to 2 GiB; in a container, of
    what is available below its limit.
    """
    if device.type != "cuda":
        return min(available_memory() // 8, CPU_CACHE_LIMIT_BYTES)
    free_on_gpu, total = torch.cuda.mem_get_info(device)
    share = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return max(0, min(share - torch.cuda.memory_reserved(device), free_on_gpu) // 2)


def own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Returns a CUDA stream that sees all earlier work on the device; None on the CPU, which has no streams."""
    if device.type != "cuda":
        return None
    # The weights were copied on the default stream, for which a new stream does not wait.
    torch.cuda.synchronize(device)
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Runs the block on a stream and then waits for the stream, so that any other stream can use the results."""
    if stream is None:
        yield
        return
    with torch.cuda.stream(stream):
        try:
            yield
        finally:
            # Also after an error: kernels that still read an embedding must end before the embedding may be dropped.
            stream.synchronize()
