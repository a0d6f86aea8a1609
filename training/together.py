"""Several processes that train one model: each sees its own pictures, and all take the mean of their gradients.

Two processes of one thread each are a third faster on two cores than one process of two threads, since most
operations on small pictures are too short to be shared out.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn


def mean_gradients(modules: Iterable[nn.Module]) -> None:
    """Gives every process the mean of all gradients; a weight that has none here counts as zero."""
    weights = [weight for module in modules for weight in module.parameters()]
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    flat = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.grad = part.view_as(weight)


def latest(seconds: float) -> float:
    """The largest of the processes' clocks, so that all are in the same stage."""
    clock = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(clock, dist.ReduceOp.MAX)
    return float(clock)


def run(count: int, work: Callable[..., None], *args: Any) -> None:
    """Calls work(rank, *args) in `count` processes that can talk to each other; ends all when one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # So that none is left behind when this process is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    spawn(_member, (count, port, work, args), nprocs=count, daemon=True)  # type: ignore[no-untyped-call]


def _member(rank: int, count: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    try:
        work(rank, *args)
    finally:
        dist.destroy_process_group()
