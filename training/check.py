"""A quick look at a model while it trains: click and box on fixed held-out scenes, at the size in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training import scenes, sheets
from training.data import SMALLEST_PART, normalise
from training.losses import ious
from training.model import decode, encode, set_size
from training.prompts import first_prompt

SEED = 99
SCENE_SIZE = 512
ROWS = 8
ROW_SIDE = 240


def resized(scene: scenes.Scene, size: int) -> tuple[Tensor, Tensor]:
    """The picture of a scene at size x size, normalised, and the masks of its objects at a quarter of that."""
    image = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None].float() / 255
    image = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
    objects = torch.from_numpy(scene.objects)[None, None].float()
    objects = F.interpolate(objects, size=(size // 4, size // 4), mode="nearest-exact")[0, 0]
    each = torch.stack([objects == number for number in range(1, int(objects.max()) + 1)]).float()
    return normalise(image), each[each.mean(dim=(1, 2)) > SMALLEST_PART][:, None]


def _strip(image: NDArray[np.uint8], click: Tensor, size: int, logits: Tensor, reached: Tensor) -> Image.Image:
    """The scene with the masks of one prompt (4 x h x w, of which the last three are drawn)."""
    full = F.interpolate(logits[None], size=image.shape[:2], mode="bilinear", align_corners=False)[0, 1:]
    captions = [f"IoU {value:.2f}" for value in reached[1:]]
    x, y = (click * image.shape[0] / size).tolist()
    return sheets.strip(image, (x, y), list((full > 0).numpy()), captions, ROW_SIDE)


@torch.no_grad()
def held_out_iou(model: Any, size: int, count: int, sheet: Path | None = None) -> tuple[float, float]:
    """Mean IoUs on held-out objects, at a quarter of the size: of the best of three masks for one click, and of the
    single mask for a box. The sheet shows the click in one object of each of the first scenes.
    """
    set_size(model, size)
    rng = np.random.default_rng(SEED)
    found: dict[str, list[Tensor]] = {"click": [], "box": []}
    strips: list[Image.Image] = []
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        for _ in range(count):
            scene = scenes.render(rng, SCENE_SIZE, SCENE_SIZE, held_out=True)
            image, masks = resized(scene, size)
            if not len(masks):
                continue
            features, owner = encode(model, image), torch.zeros(len(masks), dtype=torch.long)
            for kind, reached in found.items():
                points, labels = first_prompt(kind, masks)
                decoded = decode(model, features, owner, points, labels, None)
                reached.append(ious(decoded.masks, masks))
                if kind == "click" and points is not None and len(strips) < ROWS:
                    strips.append(_strip(scene.image, points[0, 0], size, decoded.masks[0], reached[-1][0]))
    if sheet is not None:
        sheets.save(strips, sheet)
    return float(torch.cat(found["click"])[:, 1:].amax(1).mean()), float(torch.cat(found["box"])[:, 0].mean())
