"""Runs a batch in halves if the whole batch does not fit into the device's memory."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from deployments.errors import Overloaded
from deployments.model.devices import is_memory_full

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")


def run_in_halves(
    run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], device: torch.device, what: str
) -> list[Result | Overloaded]:
    """Returns the results of `run(items)`; if the device runs out of memory, runs each half by itself, recursively.

    Args:
        run: returns one result per item; may raise torch.OutOfMemoryError.
        items: at least one.
        device: the device that `run` uses.
        what: a noun for the error message, such as `image`.

    Returns:
        One result per item. For an item that does not fit even alone, the result is the error: it is not raised, since
        the other items succeed.
    """
    results = _unless_out_of_memory(run, items)
    if results is not None:
        return list(results)
    # Only now is the exception gone: while it was being handled, its frames kept the failed run's tensors alive.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if len(items) == 1:
        return [Overloaded(f"one {what} of this model does not fit into the device's free memory")]
    half = len(items) // 2
    logger.warning("%d %ss do not fit into the device's free memory; running them in halves", len(items), what)
    return [
        *run_in_halves(run, items[:half], device, what),
        *run_in_halves(run, items[half:], device, what),
    ]


def all_or_error(results: Sequence[Result | Overloaded]) -> list[Result]:
    """Returns the results if there is no error among them; otherwise raises the first error.

    Raises:
        Overloaded: an item did not fit into the device's memory.
    """
    good = []
    for result in results:
        if isinstance(result, Overloaded):
            raise result
        good.append(result)
    return good


def _unless_out_of_memory(
    run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> Sequence[Result] | None:
    try:
        return run(items)
    except RuntimeError as error:
        if not is_memory_full(error):
            raise
        return None
