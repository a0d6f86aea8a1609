"""A replica's share of a GPU, computed without one: torch.cuda is the neighbour that is isolated here."""

from types import SimpleNamespace

import pytest
import torch

from deployments.errors import ModelLoadError
from deployments.model.engine import limit_gpu_memory, start_device

TOTAL = 80 * 2**30
CUDA = torch.device("cuda")


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The fractions that torch was told, on a card of 80 GiB."""
    told: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=TOTAL))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: told.append(share))
    return told


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_a_share_is_the_fraction_less_the_cuda_context(shares: list[float], fraction: float) -> None:
    limit_gpu_memory(CUDA, fraction, context_reserve_bytes=2 * 2**30)
    assert shares == [pytest.approx(fraction - 0.025)]


def test_a_share_smaller_than_the_context_is_refused(shares: list[float]) -> None:
    with pytest.raises(ModelLoadError, match="leaves nothing"):
        limit_gpu_memory(CUDA, 0.01, context_reserve_bytes=2**30)
    assert shares == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelLoadError, match="no CUDA device"):
        start_device("cuda", 0.5, 2)


def test_auto_without_an_assigned_gpu_is_the_cpu_with_the_threads_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        assert start_device("auto", 0.0, 1) == torch.device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
