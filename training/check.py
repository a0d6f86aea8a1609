"""A quick look at a model while it trains: one click on a fixed set of held-out scenes at the size in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training import scenes, sprites
from training.data import SMALLEST_PART, normalise
from training.losses import ious
from training.model import decode, encode, set_size
from training.prompts import first_prompt

SEED = 99
SCENE_SIZE = 512


def resized(scene: scenes.Scene, size: int) -> tuple[Tensor, Tensor]:
    """The picture of a scene at size x size, normalised, and the masks of its objects at a quarter of that."""
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
    image = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
    objects = torch.from_numpy(scene.objects)[None, None].float()
    objects = F.interpolate(objects, size=(size // 4, size // 4), mode="nearest-exact")[0, 0]
    each = torch.stack([objects == number for number in range(1, int(objects.max()) + 1)]).float()
    return normalise(image), each[each.mean(dim=(1, 2)) > SMALLEST_PART][:, None]


@torch.no_grad()
def held_out_iou(model: Any, size: int, count: int) -> float:
    """Mean IoU, at a quarter of the size, of the best of three masks for one click on held-out objects."""
    set_size(model, size)
    rng, pool = np.random.default_rng(SEED), sprites.load(held_out=True)
    found: list[Tensor] = []
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        for _ in range(count):
            image, masks = resized(scenes.render(rng, SCENE_SIZE, SCENE_SIZE, pool), size)
            if len(masks):
                points, labels = first_prompt("click", masks)
                owner = torch.zeros(len(masks), dtype=torch.long)
                decoded = decode(model, encode(model, image), owner, points, labels, None)
                found.append(ious(decoded.masks, masks)[:, 1:].amax(1))
    return float(torch.cat(found).mean())
