"""Devices: which one, its share of memory, the precision that suits it, and streams."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor_config

from deployments.errors import ModelLoadError
from deployments.model import devices
from deployments.model.devices import (
    choose_precision,
    default_batch_sizes,
    default_cache_bytes,
    limit_gpu_memory,
    on_stream,
    own_stream,
    start_device,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Gives torch its threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(("device", "gpu_fraction"), [("cpu", 0.0), ("cpu", 1.0), ("auto", 0.0)])
def test_the_cpu_is_taken_where_asked_for_or_without_a_share_of_a_gpu(device: str, gpu_fraction: float) -> None:
    assert start_device(device, gpu_fraction, torch_threads=1) == CPU
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(("device", "gpu_fraction"), [("cuda", 0.0), ("auto", 0.5)])
def test_a_gpu_that_is_not_there_is_an_error_not_a_slow_answer(device: str, gpu_fraction: float) -> None:
    with pytest.raises(ModelLoadError, match="torch finds no CUDA device"):
        start_device(device, gpu_fraction, torch_threads=1)


@pytest.mark.usefixtures("restored_threads")
def test_float32_is_not_rounded_to_tf32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.backends.cudnn.allow_tf32
    try:
        assert start_device("cuda", 1.0, torch_threads=1) == CUDA
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(("threads", "prompts"), [(1, 2), (2, 4), (16, 32), (64, 32)])
def test_a_cpu_takes_one_image_at_a_time_and_few_prompts(threads: int, prompts: int) -> None:
    torch.set_num_threads(threads)
    assert default_batch_sizes(CPU) == (1, prompts)
    assert default_batch_sizes(CUDA) == (8, 16)


def test_a_share_smaller_than_the_cuda_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10_000))

    with pytest.raises(ModelLoadError, match=r"0\.05 of a GPU of 10000 bytes is no more than the CUDA context takes"):
        limit_gpu_memory(CUDA, 0.05, 600)


def test_the_cuda_context_is_taken_off_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10_000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: shares.append(share))

    limit_gpu_memory(CUDA, 0.5, 1_000)

    assert shares == [pytest.approx(0.4)]


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(("setting", "threads"), [(None, 3), (5, 5)])
def test_torch_starts_a_thread_for_each_usable_core_unless_the_setting_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, setting: int | None, threads: int
) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: 3)

    start_device("cpu", 0.0, setting)

    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("cores", "compilers"), [(3, 3), (64, 32)])
def test_no_more_compilers_run_than_there_are_usable_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, compilers: int
) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: cores)

    with inductor_config.patch(compile_threads=32):
        devices.limit_compilers()
        assert inductor_config.compile_threads == compilers


# ---- precision


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_precision_that_is_asked_for_is_taken(device: torch.device) -> None:
    assert choose_precision("float32", device) == torch.float32
    assert choose_precision("bfloat16", device) == torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx2": True, "amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"neon": True}, torch.float32),
    ],
)
def test_a_cpu_runs_bfloat16_where_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    assert choose_precision("auto", CPU) == precision


def test_torch_knows_this_cpus_capabilities_by_the_names_used() -> None:
    capabilities = torch.cpu.get_capabilities()

    if capabilities["architecture"] == "x86_64":
        assert {"amx_bf16", "avx512_bf16"} <= capabilities.keys()


@pytest.mark.parametrize(("supported", "precision"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_runs_bfloat16_unless_it_would_emulate_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool, precision: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or supported)

    assert choose_precision("auto", CUDA) == precision


# ---- memory for embeddings


@pytest.mark.parametrize(("available", "expected"), [(8_000, 1_000), (2**40, 2 * 2**30), (0, 0)])
def test_a_cache_takes_an_eighth_of_the_cpus_free_memory_within_bounds(
    monkeypatch: pytest.MonkeyPatch, available: int, expected: int
) -> None:
    monkeypatch.setattr(devices, "available_memory", lambda: available)

    assert default_cache_bytes(CPU) == expected


@pytest.mark.parametrize(
    ("fraction", "reserved", "free", "expected"),
    [
        (0.5, 1_000, 9_000, 2_000),
        (0.5, 1_000, 3_000, 1_500),
        (1.0, 1_000, 9_000, 4_500),
        (0.1, 2_000, 9_000, 0),
    ],
    ids=["half of the share", "others took more", "the whole GPU", "the model fills the share"],
)
def test_a_cache_takes_half_of_what_is_free_of_the_gpus_share(
    monkeypatch: pytest.MonkeyPatch, fraction: float, reserved: int, free: int, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10_000))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: fraction)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)

    assert default_cache_bytes(CUDA) == expected


# ---- streams


@pytest.mark.parametrize(
    ("code", "full"),
    # Illegal address, uncorrectable ECC error, no memory, no resources to launch a kernel.
    [(700, False), (214, False), (2, True), (701, True), (None, False)],
)
def test_a_device_that_only_lacks_memory_is_not_lost(code: int | None, full: bool) -> None:
    error = torch.AcceleratorError("CUDA error")
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]
    assert devices.is_memory_full(error) == full
    assert devices.is_device_lost(error) != full


def test_errors_of_the_input_say_nothing_of_the_device() -> None:
    for error in (ValueError("CUDA out of memory"), RuntimeError("shape")):
        assert not devices.is_memory_full(error)
        assert not devices.is_device_lost(error)
    assert devices.is_memory_full(torch.OutOfMemoryError("full"))
    assert not devices.is_device_lost(torch.OutOfMemoryError("full"))


def test_the_cpu_has_no_streams() -> None:
    assert own_stream(CPU) is None
    with on_stream(None):
        pass


def test_a_stream_is_made_after_the_weights_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: calls.append("stream"))

    own_stream(CUDA)

    assert calls == ["synchronize", "stream"]


@pytest.mark.parametrize("error", [None, ValueError("a kernel's")])
def test_a_stream_is_waited_for_also_after_a_failure(monkeypatch: pytest.MonkeyPatch, error: ValueError | None) -> None:
    calls: list[str] = []
    stream: Any = SimpleNamespace(synchronize=lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())

    with pytest.raises(ValueError, match="a kernel's") if error else nullcontext(), on_stream(stream):
        calls.append("run")
        if error:
            raise error

    assert calls == ["run", "synchronize"]
