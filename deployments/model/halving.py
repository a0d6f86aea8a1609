"""Batches that do not fit into the device's memory are run in halves."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from deployments.errors import Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")


def run_in_halves(
    run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], device: torch.device, what: str
) -> list[Result]:
    """The results of `run(items)`; where the device runs out of memory, those of the halves, and of their halves.

    Args:
        run: gives one result an item; may raise torch.OutOfMemoryError.
        items: at least one.
        device: what `run` runs on.
        what: a noun for the error, such as `image`.

    Raises:
        Overloaded: a single item does not fit.
    """
    results = _unless_out_of_memory(run, items)
    if results is not None:
        return list(results)
    # Not before the exception is gone: as long as it is handled, its frames keep the failed run's tensors.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if len(items) == 1:
        raise Overloaded(f"one {what} of this model does not fit into the device's free memory")
    half = len(items) // 2
    logger.warning("%d %ss do not fit into the device's free memory; goes on in halves", len(items), what)
    return [
        *run_in_halves(run, items[:half], device, what),
        *run_in_halves(run, items[half:], device, what),
    ]


def _unless_out_of_memory(
    run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> Sequence[Result] | None:
    try:
        return run(items)
    except torch.OutOfMemoryError:
        return None
