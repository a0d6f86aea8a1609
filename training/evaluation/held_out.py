"""Measure a checkpoint on held-out scenes through SAM2ImagePredictor, as a Markdown table and a sheet to look at.

Also a quick look at a model while it trains, which needs no predictor.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch import Tensor
from tqdm import tqdm

from training.evaluation import sheets
from training.model.learning import ious
from training.model.network import CHECKPOINT_PATH, build_model, decode, encode, set_size
from training.prompts import SMALLEST_PART, depth, first_prompt, normalise
from training.scenes import render as scenes

Mask = NDArray[np.bool_]
SEED = 2026
SMALLEST = 0.004
ROW_SIDE = 300
CORRECTIONS = 3
BINS = np.array([-1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
COLUMNS = {
    "middle_best": "one click in the middle, best of three",
    "middle_scored": "one click in the middle, mask of the highest score",
    "middle_single": "one click in the middle, `multimask_output=False`",
    "anywhere_best": "one click anywhere on the object, best of three",
    "box_scored": "box, mask of the highest score",
    "box_single": "box, `multimask_output=False`",
    "corrected": "one click and three more, each where the mask is most wrong, with the mask before",
    "part_best": "one click in the middle of a part, best of three (against the part)",
}


def load_predictor(checkpoint: Path) -> Any:
    """The demo model with the checkpoint's weights, in float32, behind SAM2's own predictor."""
    model = build_model()
    model.load_state_dict(load_file(checkpoint), strict=True)
    return SAM2ImagePredictor(model.float().eval())


def iou(guess: Mask, truth: Mask) -> float:
    """Intersection over union of two masks."""
    return float((guess & truth).sum() / max(1, (guess | truth).sum()))


def middle(mask: Mask) -> tuple[float, float]:
    """The point of a mask farthest from its edge, as x and y."""
    height, width = mask.shape
    small = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=(height // 4, width // 4), mode="area")
    solid = (small > 0.5).float()
    if not solid.any():
        rows, columns = np.nonzero(mask)
        return float(columns[len(columns) // 2]), float(rows[len(rows) // 2])
    index = int(depth(F.pad(solid, (1, 1, 1, 1)), 100)[..., 1:-1, 1:-1].argmax())
    return (index % (width // 4)) * 4 + 2.0, (index // (width // 4)) * 4 + 2.0


def corrected(predictor: Any, truth: Mask) -> float:
    """IoU after clicks that each go to the deepest point of what is still wrong.

    The first has three answers, of which the one of the highest score counts; then it is clear what is meant, and the
    single one counts, as SAM 2's own notes advise.
    """
    points, labels, logits, mask = [], [], None, np.zeros_like(truth)
    for _ in range(1 + CORRECTIONS):
        missed, extra = truth & ~mask, mask & ~truth
        if not missed.any() and not extra.any():
            break
        foreground = missed.sum() >= extra.sum()
        points.append(middle(missed if foreground else extra))
        labels.append(int(foreground))
        masks, scores, low = predictor.predict(
            np.array(points), np.array(labels), mask_input=logits, multimask_output=logits is None
        )
        best = int(scores.argmax())
        mask, logits = masks[best] > 0, low[best : best + 1]
    return iou(mask, truth)


def measure(
    predictor: Any, truth: Mask, anywhere: tuple[float, float]
) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """Figures of COLUMNS for one object of the image that the predictor holds.

    Args:
        predictor: holds the image.
        truth: the object.
        anywhere: a random point of it.

    Returns:
        The figures; and predicted and true IoU of each mask for the click in the middle.
    """
    found: dict[str, float] = {}
    one = np.array([1])
    masks, scores, _ = predictor.predict(np.array([middle(truth)]), one)
    each = [iou(mask > 0, truth) for mask in masks]
    found["middle_best"], found["middle_scored"] = max(each), each[int(scores.argmax())]
    rated = list(zip(map(float, scores), each, strict=True))
    masks, _, _ = predictor.predict(np.array([middle(truth)]), one, multimask_output=False)
    found["middle_single"] = iou(masks[0] > 0, truth)
    masks, _, _ = predictor.predict(np.array([anywhere]), one)
    found["anywhere_best"] = max(iou(mask > 0, truth) for mask in masks)
    rows, columns = np.nonzero(truth)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    masks, scores, _ = predictor.predict(box=box)
    found["box_scored"] = iou(masks[int(scores.argmax())] > 0, truth)
    masks, _, _ = predictor.predict(box=box, multimask_output=False)
    found["box_single"] = iou(masks[0] > 0, truth)
    found["corrected"] = corrected(predictor, truth)
    return found, rated


@dataclass(frozen=True)
class Held:
    """A scene of held-out sprites and new shapes.

    Attributes:
        image: H×W×3.
        targets: each object's mask, with a random click on it.
        parts: the masks of parts.
    """

    image: NDArray[np.uint8]
    targets: list[tuple[Mask, tuple[float, float]]]
    parts: list[Mask]


def held_out_scene(index: int, size: int) -> Held:
    """The scene of that number, always the same."""
    rng = np.random.default_rng([SEED, index])
    scene = scenes.render(rng, size, size, held_out=True)
    targets = []
    for number in range(1, int(scene.objects.max()) + 1):
        truth = scene.objects == number
        if truth.mean() > SMALLEST:
            rows, columns = np.nonzero(truth)
            chosen = int(rng.integers(len(rows)))
            targets.append((truth, (float(columns[chosen]), float(rows[chosen]))))
    parts = [scene.labels[..., 1] == number for number in range(1, int(scene.labels[..., 1].max()) + 1)]
    return Held(scene.image, targets, [part for part in parts if part.mean() > SMALLEST])


def sheet_row(predictor: Any, image: NDArray[np.uint8], truth: Mask) -> Image.Image:
    """The image with the click, then the three masks over it with their IoUs and predicted scores."""
    click = middle(truth)
    masks, scores, _ = predictor.predict(np.array([click]), np.array([1]))
    found = [mask > 0 for mask in masks]
    captions = [f"IoU {iou(mask, truth):.2f} score {score:.2f}" for mask, score in zip(found, scores, strict=True)]
    return sheets.strip(image, click, found, captions, ROW_SIDE)


def evaluate(
    predictor: Any, count: int, size: int, sheet: Path | None, rows: int
) -> tuple[list[dict[str, float]], list[tuple[float, float]]]:
    """Every object's figures on `count` held-out scenes, and predicted and true IoU of their masks.

    The sheet shows one object of each of the first scenes.
    """
    results: list[dict[str, float]] = []
    rated: list[tuple[float, float]] = []
    strips: list[Image.Image] = []
    for index in tqdm(range(count), desc="scenes", disable=None):
        scene = held_out_scene(index, size)
        predictor.set_image(scene.image)
        for truth, anywhere in scene.targets:
            figures, scored = measure(predictor, truth, anywhere)
            results.append(figures)
            rated += scored
        for part in scene.parts:
            masks, _, _ = predictor.predict(np.array([middle(part)]), np.array([1]))
            results.append({"part_best": max(iou(mask > 0, part) for mask in masks)})
        if scene.targets and len(strips) < rows:
            strips.append(sheet_row(predictor, scene.image, scene.targets[index % len(scene.targets)][0]))
    if sheet is not None:
        sheets.save(strips, sheet)
    return results, rated


def table(results: list[dict[str, float]]) -> str:
    """The means as a Markdown table."""
    lines = ["| prompt | mean IoU | objects at 0.5 or better |", "| --- | --- | --- |"]
    for key, words in COLUMNS.items():
        values = np.array([result[key] for result in results if key in result])
        lines.append(f"| {words} | {values.mean():.3f} | {100 * (values >= 0.5).mean():.0f}% |")
    return "\n".join(lines)


def calibration(rated: list[tuple[float, float]]) -> str:
    """How true the predicted scores are, as a Markdown table and a line."""
    predicted, true = np.array(rated).T
    lines = ["| predicted IoU | masks | mean true IoU |", "| --- | --- | --- |"]
    for low, high in pairwise(BINS):
        inside = (predicted >= low) & ((predicted < high) | (high == 1.0))
        if inside.any():
            lines.append(f"| {max(low, 0):g} to {high:g} | {inside.sum()} | {true[inside].mean():.3f} |")
    error = np.abs(predicted - true).mean()
    return "\n".join([*lines, f"\nmean error {error:.3f}, correlation {np.corrcoef(predicted, true)[0, 1]:.2f}"])


# ---- while a model trains: click and box on fixed scenes, at the size in training

CHECK_SEED = 99
CHECK_SIZE = 512
CHECK_ROWS = 8
CHECK_ROW_SIDE = 240


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
    return sheets.strip(image, (x, y), list((full > 0).numpy()), captions, CHECK_ROW_SIDE)


@torch.no_grad()
def held_out_iou(model: Any, size: int, count: int, sheet: Path | None = None) -> tuple[float, float]:
    """Mean IoUs on held-out objects, at a quarter of the size: of the best of three masks for one click, and of the
    single mask for a box. The sheet shows the click in one object of each of the first scenes.
    """
    set_size(model, size)
    rng = np.random.default_rng(CHECK_SEED)
    found: dict[str, list[Tensor]] = {"click": [], "box": []}
    strips: list[Image.Image] = []
    with torch.random.fork_rng():
        torch.manual_seed(CHECK_SEED)
        for _ in range(count):
            scene = scenes.render(rng, CHECK_SIZE, CHECK_SIZE, held_out=True)
            image, masks = resized(scene, size)
            if not len(masks):
                continue
            features, owner = encode(model, image), torch.zeros(len(masks), dtype=torch.long)
            for kind, reached in found.items():
                points, labels = first_prompt(kind, masks)
                decoded = decode(model, features, owner, points, labels, None)
                reached.append(ious(decoded.masks, masks))
                if kind == "click" and points is not None and len(strips) < CHECK_ROWS:
                    strips.append(_strip(scene.image, points[0, 0], size, decoded.masks[0], reached[-1][0]))
    if sheet is not None:
        sheets.save(strips, sheet)
    return float(torch.cat(found["click"])[:, 1:].amax(1).mean()), float(torch.cat(found["box"])[:, 0].mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT_PATH)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--size", type=int, default=1024, help="side of the rendered scenes")
    parser.add_argument("--sheet", type=Path, default=None, help="write a picture of some results here")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results, rated = evaluate(load_predictor(args.checkpoint), args.scenes, args.size, args.sheet, args.rows)
    objects = sum("box_single" in result for result in results)
    print(
        f"{objects} objects, {len(results) - objects} parts in {args.scenes} held-out scenes of {args.size}² pixels\n"
    )
    print(table(results))
    print(f"\n{calibration(rated)}")


if __name__ == "__main__":
    main()
