"""What each process does in the test of training.together; apart from the test, so that it imports little."""

from pathlib import Path

import torch
from torch import nn

from training.model import learning


def share_gradients(rank: int, folder: Path) -> None:
    """Takes the mean of gradients of 1 and 2, of 4 and none, and of none at all; and the later of two clocks."""
    layer, unused = nn.Linear(3, 2), nn.Linear(1, 1)
    layer.weight.grad = torch.full((2, 3), 1.0 + rank)
    if rank == 0:
        layer.bias.grad = torch.full((2,), 4.0)
    learning.mean_gradients([layer, unused])
    gradients = [weight.grad for weight in [*layer.parameters(), *unused.parameters()]]
    torch.save({"gradients": gradients, "clock": learning.latest(3.0 - rank)}, folder / f"{rank}.pt")
