"""How the model learns: losses, optimisers, and processes that share their gradients."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

# ---- losses: overlap and pixel loss on masks (best of three), squared error on scores, a helper for the encoder

ANCHORS = 96
AFFINITY_SIDE = 64  # of finer maps only every second or fourth pixel is asked about
PIXEL_WEIGHT = 2.0
SINGLE_WEIGHT = 0.5
LOSERS_WEIGHT = 0.05
SCORE_WEIGHT = 0.5


def mask_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice plus pixel loss of each mask (P x M) for logits P x M x h x w and targets P x 1 x h x w."""
    chance = logits.sigmoid()
    together = (chance * targets).sum(dim=(2, 3))
    dice = 1 - (2 * together + 1) / (chance.sum(dim=(2, 3)) + targets.sum(dim=(2, 3)) + 1)
    pixel = F.binary_cross_entropy_with_logits(logits, targets.expand_as(logits), reduction="none").mean(dim=(2, 3))
    return dice + PIXEL_WEIGHT * pixel


def ious(logits: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of each mask (P x M), both sides cut at one half."""
    guess, truth = logits > 0, targets > 0.5
    both = (guess & truth).sum(dim=(2, 3)).float()
    either = (guess | truth).sum(dim=(2, 3)).float()
    return both / either.clamp(min=1)


def prompt_loss(logits: Tensor, scores: Tensor, targets: Tensor, is_clear: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of one decoder call and the IoUs of its four masks.

    Only the best of the three alternatives learns in full; the others get a little, so that none falls asleep. The
    single mask learns where it is clear what is meant (P, 1 or 0): of one click that means a part, it would learn to
    waver between that and the whole.
    """
    losses = mask_losses(logits, targets)
    alternatives = losses[:, 1:]
    reached = ious(logits.detach(), targets)
    single = (losses[:, 0] * is_clear).mean()
    total = alternatives.amin(1).mean() + LOSERS_WEIGHT * alternatives.mean() + SINGLE_WEIGHT * single
    errors = (scores - reached).square()
    return total + SCORE_WEIGHT * (errors[:, 1:].mean() * 0.75 + (errors[:, 0] * is_clear).mean() * 0.25), reached


class AffinityHead(nn.Module):
    """Training only: pixels of one object shall have like features, pixels of two objects unlike ones.

    It asks of the encoder directly what a click needs (what belongs with this pixel?) at every pixel at once, where a
    mask loss teaches one object at a time through the decoder. It is thrown away when training ends.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 128), width: int = 32) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, features: list[Tensor], objects: Tensor) -> Tensor:
        """The loss for features fine to coarse and an object map (N x h x w) of the finest one's size."""
        maps = [level(feature) for level, feature in zip(self.levels, features, strict=True)]
        size = maps[0].shape[-2:]
        total = sum(F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps)
        assert isinstance(total, Tensor)
        step = max(1, size[0] // AFFINITY_SIDE)
        down, right = torch.randint(step, (2,)).tolist()
        total, objects = total[..., down::step, right::step].float(), objects[..., down::step, right::step]
        embedding = F.normalize(total.flatten(2), dim=1)  # N x width x pixels
        numbers = objects.flatten(1)
        pixels = numbers.shape[1]
        anchors = torch.randint(pixels, (len(numbers), ANCHORS))
        picked = embedding.gather(2, anchors[:, None].expand(-1, embedding.shape[1], -1))
        alike = self.scale * (torch.einsum("nca,ncp->nap", picked, embedding).float() - self.threshold)
        same = (numbers.gather(1, anchors)[:, :, None] == numbers[:, None]).float()
        side = int(pixels**0.5)
        return mask_losses(
            alike.view(len(numbers), ANCHORS, side, side).flatten(0, 1)[:, None],
            same.view(len(numbers), ANCHORS, side, side).flatten(0, 1)[:, None],
        ).mean()


# ---- Muon for weight matrices, for more progress a step, and AdamW for everything else

# torch.optim.Muon is the same but for bfloat16 in its iteration, which only some processors multiply: on one that does
# not, a step over these matrices took it 0.97 s, and this one 0.2 to 0.3 s.

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


# ---- several processes: each sees its own pictures, and all take the mean of their gradients

# Two processes of one thread each are a third faster on two cores than one process of two threads, since most
# operations on small pictures are too short to be shared out.


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
