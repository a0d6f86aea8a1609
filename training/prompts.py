"""Prompts drawn from masks: clicks, boxes and corrections. Masks and clicks are at a quarter of the input's size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BACKGROUND, FOREGROUND, BOX_START, BOX_END, NO_POINT = 0, 1, 2, 3, -1
STRIDE = 4
DEPTHS = 6
BOX_NOISE = 0.1


def depth(masks: Tensor, steps: int = DEPTHS) -> Tensor:
    """How many erosions, up to `steps`, each pixel of the masks (P x 1 x h x w, 0 or 1) survives."""
    total, left = masks.clone(), masks
    for _ in range(steps - 1):
        left = -F.max_pool2d(-left, 3, stride=1, padding=1)
        total += left
    return total


def random_clicks(masks: Tensor, inner: Tensor) -> Tensor:
    """A click in each mask (P x 2, input pixels): anywhere where inner is 0, towards the middle where it is larger."""
    weights = depth(masks).flatten(1)
    weights = torch.where(weights > 0, weights ** inner[:, None], 0.0)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, 1.0)
    chosen = torch.multinomial(weights, 1)[:, 0]
    width = masks.shape[-1]
    cells = torch.stack([chosen % width, chosen // width], dim=1).float()
    return (cells + torch.rand_like(cells)) * STRIDE


def boxes(masks: Tensor, noise: float) -> Tensor:
    """The box around each mask as two corners (P x 2 x 2, input pixels).

    Each box is off by its own measure: its corners move by up to that share of its sides, from nothing to `noise`.
    """
    columns, rows = masks.amax(dim=(1, 2)) > 0, masks.amax(dim=(1, 3)) > 0
    corners = []
    for flags in (columns, rows):
        length = flags.shape[1]
        first = flags.float().argmax(1)
        last = length - flags.flip(1).float().argmax(1)
        corners.append(torch.stack([first, last], dim=1).float() * STRIDE)
    found = torch.stack(corners, dim=2)
    sides = (found[:, 1:] - found[:, :1]).abs()
    share = noise * torch.rand(len(found), 1, 1)
    return found + (2 * torch.rand_like(found) - 1) * share * sides


def first_prompt(kind: str, masks: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Points and labels of an opening prompt: "click", "box", "both" or "none"."""
    if kind == "none":
        return None, None
    count = len(masks)
    click = random_clicks(masks, torch.randint(0, 3, (count,)).float())[:, None]
    click_label = torch.full((count, 1), FOREGROUND)
    if kind == "click":
        return click, click_label
    box = boxes(masks, BOX_NOISE)
    box_labels = torch.tensor([BOX_START, BOX_END]).expand(count, 2)
    if kind == "box":
        return box, box_labels
    return torch.cat([box, click], dim=1), torch.cat([box_labels, click_label], dim=1)


def correction(masks: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """One click a mask (P x 1 x 2, with labels) where the guess is wrong: foreground if missed, else background."""
    wrong = ((guess > 0) != (masks > 0)).float()
    perfect = wrong.flatten(1).sum(1) == 0
    wrong = torch.where(perfect.view(-1, 1, 1, 1), masks, wrong)
    clicks = random_clicks(wrong, torch.ones(len(masks)))
    cells = (clicks / STRIDE).long().clamp(max=masks.shape[-1] - 1)
    labels = (masks[torch.arange(len(masks)), 0, cells[:, 1], cells[:, 0]] > 0).long()
    return clicks[:, None], labels[:, None]
