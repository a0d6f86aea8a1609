"""Losses: overlap and pixel loss on masks (best of three), squared error on scores, and a helper for the encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
