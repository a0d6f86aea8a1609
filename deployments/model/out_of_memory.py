"""Batches that do not fit into the device's memory are run in halves."""

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
    """The results of `run(items)`; where the device runs out of memory, those of the halves, and of their halves.

    Args:
        run: gives one result an item; may raise torch.OutOfMemoryError.
        items: at least one.
        device: what `run` runs on.
        what: a noun for the error, such as `image`.

    Returns:
        One result an item; the error, not raised, for one that does not fit even alone: the others did nothing wrong.
    """
    results = _unless_out_of_memory(run, items)
    if results is not None:
        return list(results)
    # Not before the exception is gone: as long as it is handled, its frames keep the failed run's tensors.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if len(items) == 1:
        return [Overloaded(f"one {what} of this model does not fit into the device's free memory")]
    half = len(items) // 2
    logger.warning("%d %ss do not fit into the device's free memory; goes on in halves", len(items), what)
    return [
        *run_in_halves(run, items[:half], device, what),
        *run_in_halves(run, items[half:], device, what),
    ]


def all_or_error(results: Sequence[Result | Overloaded]) -> list[Result]:
    """The results, if there are no errors among them; else raises the first.

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
