"""The optimiser: Muon for weight matrices, for more progress a step, and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest half-orthogonal matrix, roughly: all singular values of the update become about one.

    The iteration runs on the small square gram matrix, which for long matrices is several times less work.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    gram, product = x @ x.T, torch.eye(len(x))
    for _ in range(steps):
        factor = b * gram + c * gram @ gram
        factor.diagonal().add_(a)
        product, gram = factor @ product, factor @ gram @ factor
    x = product @ x
    result: Tensor = x.T if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, scaled so that AdamW's learning rates fit."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                buffer = state.setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(buffer, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def make_optimisers(modules: Iterable[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """Muon over the matrices of linear layers, AdamW over the rest."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for module in modules:
        linear = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
        for weight in module.parameters():
            (matrices if id(weight) in linear and min(weight.shape) > 8 else others).append(weight)
    return [Muon(matrices, lr), torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.01)]
