"""What is asked: batches of augmented crops with a mask for each object; clicks, boxes and corrections from masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

# ---- batches

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
SMALLEST_PART = 0.004  # of the picture; less than this is not asked for
SMALLEST = (SMALLEST_PART, 0.002, 0.0015)  # objects, their parts, the parts of those
LEVEL_WEIGHTS = (1.0, 0.45, 0.3)  # how often each is asked for, where all are there


@dataclass(frozen=True)
class Batch:
    """Images, who is seen where at a quarter of the size, and the objects asked for."""

    images: Tensor  # N x 3 x size x size, normalised
    objects: Tensor  # N x size/4 x size/4, object numbers
    owner: Tensor  # P: which image each prompt belongs to
    targets: Tensor  # P x 1 x size/4 x size/4, coverage 0 to 1
    levels: Tensor  # P: 0 for whole objects, 1 for their parts, 2 for the parts of those


class Pool:
    """The rendered scenes on disk, looked through again as more are rendered."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self._blocks: dict[str, NDArray[np.uint8]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in files that have come since."""
        for path in sorted(self._folder.glob(f"{self._size}-*.npy")):
            if path.name not in self._blocks:
                self._blocks[path.name] = np.load(path, mmap_mode="r")
        if not self._blocks:
            raise FileNotFoundError(
                f"no scenes of size {self._size} in {self._folder}: run training.scenes.render first"
            )

    def __len__(self) -> int:
        return sum(len(block) for block in self._blocks.values())

    def crop(self, rng: Generator, smallest: float) -> NDArray[np.uint8]:
        """A square crop of a random scene, at least `smallest` of its side, mirrored and turned at random."""
        names = list(self._blocks)
        block = self._blocks[names[int(rng.integers(len(names)))]]
        scene = block[int(rng.integers(len(block)))]
        side = round(self._size * min(1.0, float(rng.uniform(smallest, 1.2))))
        top, left = (int(v) for v in rng.integers(0, self._size - side + 1, 2))
        part = np.rot90(scene[top : top + side, left : left + side], int(rng.integers(4)))
        return np.array(part[:, ::-1] if rng.random() < 0.5 else part, order="C")


def normalise(pixels: Tensor) -> Tensor:
    """Pixels 0 to 1 as the model takes them."""
    normalised: Tensor = (pixels - MEAN) / STD
    return normalised


def jitter(rng: Generator, pixels: Tensor) -> Tensor:
    """Change the colours of an image (3 x H x W, 0 to 1) as cameras and light do, and now and then swap channels."""
    if rng.random() < 0.5:
        pixels = pixels[torch.from_numpy(rng.permutation(3))]
    gain = torch.from_numpy(rng.uniform(0.75, 1.25, (3, 1, 1)).astype(np.float32))
    offset = float(rng.uniform(-0.1, 0.1))
    return (pixels * gain + offset).clamp(0, 1)


def choose_targets(rng: Generator, labels: Tensor, count: int) -> list[tuple[int, int]]:
    """Level and number of `count` things big enough to ask for; empty where no whole object is.

    Each is asked for once before any is asked for again.
    """
    candidates: list[tuple[int, int]] = []
    weights: list[float] = []
    for level, smallest in enumerate(SMALLEST):
        numbers, areas = torch.unique(labels[level], return_counts=True)
        found = numbers[(numbers > 0) & (areas > smallest * labels[level].numel())].tolist()
        candidates += [(level, int(number)) for number in found]
        weights += [LEVEL_WEIGHTS[level] / max(1, len(found))] * len(found)
    if not any(level == 0 for level, _ in candidates):
        return []
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count:
        share = np.array(weights) / sum(weights)
        order = rng.choice(len(candidates), min(len(candidates), count - len(chosen)), replace=False, p=share)
        chosen += [candidates[index] for index in order]
    return chosen


def make_batch(rng: Generator, pool: Pool, size: int, images: int, prompts: int, smallest: float) -> Batch:
    """`images` augmented crops at size x size with `prompts` objects asked for in each."""
    pixels: list[Tensor] = []
    maps: list[Tensor] = []
    owner: list[int] = []
    targets: list[Tensor] = []
    levels: list[int] = []
    while len(pixels) < images:
        crop = torch.from_numpy(pool.crop(rng, smallest))
        halves = F.interpolate(crop[..., 3:].permute(2, 0, 1)[None].float(), size=size // 2, mode="nearest-exact")[0]
        labels = halves[:, ::2, ::2].to(torch.uint8)
        wanted = choose_targets(rng, labels, prompts)
        if not wanted:
            continue
        image = crop[..., :3].permute(2, 0, 1).float() / 255
        image = F.interpolate(image[None], size=(size, size), mode="bilinear", antialias=True)[0]
        owner += [len(pixels)] * len(wanted)
        levels += [level for level, _ in wanted]
        each = torch.stack([halves[level] == number for level, number in wanted])
        targets.append(F.avg_pool2d(each.float(), 2))
        pixels.append(jitter(rng, image))
        maps.append(labels[0])
    normalised = normalise(torch.stack(pixels))
    return Batch(normalised, torch.stack(maps), torch.tensor(owner), torch.cat(targets)[:, None], torch.tensor(levels))


# ---- prompts; masks and clicks are at a quarter of the input's size

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
