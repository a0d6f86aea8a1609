"""Halving: what does not fit into memory is run in parts, and only that."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from deployments.errors import Overloaded
from deployments.model.out_of_memory import all_or_error, run_in_halves

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def doubling(limit: int, runs: list[int]) -> Callable[[Sequence[int]], list[int]]:
    """Doubles numbers, at most `limit` at a time; notes how many it was given."""

    def run(items: Sequence[int]) -> list[int]:
        runs.append(len(items))
        if len(items) > limit:
            raise torch.OutOfMemoryError("full")
        return [2 * item for item in items]

    return run


@pytest.mark.parametrize(
    ("limit", "runs"), [(5, [5]), (3, [5, 2, 3]), (2, [5, 2, 3, 1, 2]), (1, [5, 2, 1, 1, 3, 1, 2, 1, 1])]
)
def test_results_keep_their_order_whatever_fits(limit: int, runs: list[int]) -> None:
    seen: list[int] = []

    assert run_in_halves(doubling(limit, seen), [1, 2, 3, 4, 5], CPU, "number") == [2, 4, 6, 8, 10]
    assert seen == runs


def test_one_that_does_not_fit_is_overload() -> None:
    results = run_in_halves(doubling(0, []), [1, 2], CPU, "number")

    assert all(isinstance(result, Overloaded) for result in results)
    with pytest.raises(Overloaded, match="one number of this model does not fit into the device's free memory"):
        all_or_error(results)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("compiling: CUDA out of memory.")])
def test_those_that_fit_are_not_harmed_by_one_that_does_not(error: Exception) -> None:
    def run(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise error
        return [2 * item for item in items]

    results = run_in_halves(run, [1, 2, 3, 4, 5], CPU, "number")

    assert isinstance(results[2], Overloaded)
    assert [result for result in results if not isinstance(result, Overloaded)] == [2, 4, 8, 10]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def run(_: Sequence[int]) -> list[int]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_in_halves(run, [1, 2], CPU, "number")


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    """Only reference counting frees."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
def test_the_gpus_cache_is_emptied_once_the_failed_runs_tensors_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def run(items: Sequence[int]) -> list[int]:
        tensor = torch.zeros(len(items))
        held.append(weakref.ref(tensor))
        if len(tensor) > 1:
            raise torch.OutOfMemoryError("full")
        return [1]

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(held[-1]() is not None))

    assert run_in_halves(run, [1, 2], CUDA, "number") == [1, 1]
    assert alive == [False]
