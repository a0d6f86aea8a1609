"""Batches of scenes, and the prompts drawn from their masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from training import prompts
from training.tests.pools import SIDE, write_pool

# ---- batches


def make_batch(folder: Path, rng: Generator, images: int = 6) -> prompts.Batch:
    return prompts.make_batch(rng, prompts.Pool(folder, SIDE), size=SIDE, images=images, prompts=4, smallest=0.8)


def test_a_batch_is_of_the_asked_size(tmp_path: Path) -> None:
    write_pool(tmp_path)
    batch = make_batch(tmp_path, np.random.default_rng(0))

    assert batch.images.shape == (6, 3, SIDE, SIDE)
    assert batch.objects.shape == (6, SIDE // 4, SIDE // 4)
    assert batch.targets.shape == (24, 1, SIDE // 4, SIDE // 4)
    assert batch.owner.tolist() == [index for index in range(6) for _ in range(4)]
    assert set(batch.levels.tolist()) == {0, 1, 2}
    assert 0 <= batch.targets.min() < batch.targets.max() <= 1


def test_targets_are_what_is_seen_in_the_picture_however_it_was_turned(tmp_path: Path) -> None:
    write_pool(tmp_path)
    batch = make_batch(tmp_path, np.random.default_rng(1), images=20)
    brightness = F.avg_pool2d((batch.images * prompts.STD + prompts.MEAN).mean(1), 4)

    lit = brightness > 0.5 * brightness.amax((1, 2), keepdim=True)
    assert ((batch.objects > 0) == lit).float().mean((1, 2)).min() > 0.85
    for target, level, objects in zip(batch.targets[:, 0], batch.levels, batch.objects[batch.owner], strict=True):
        [number] = objects[target == 1].unique()
        if level == 0:
            assert (objects[target == 0] != number).all()
        else:
            assert number == 1
            assert target.sum() < 0.6 * (objects == 1).sum()


def labels_of(*boxes: tuple[int, int, slice]) -> Tensor:
    labels = torch.zeros(3, 40, 40, dtype=torch.uint8)
    for level, number, rows in boxes:
        labels[level, rows, 5:35] = number
    return labels


def test_everything_is_asked_for_once_before_anything_is_asked_for_again() -> None:
    labels = labels_of((0, 1, slice(0, 9)), (0, 2, slice(10, 19)), (1, 4, slice(2, 6)), (2, 9, slice(3, 5)))
    everything = {(0, 1), (0, 2), (1, 4), (2, 9)}
    for seed in range(10):
        chosen = prompts.choose_targets(np.random.default_rng(seed), labels, 6)
        assert len(chosen) == 6
        assert set(chosen[:4]) == everything


def test_what_is_too_small_is_not_asked_for_nor_are_parts_without_a_whole() -> None:
    labels = labels_of((0, 1, slice(0, 9)))
    labels[0, 39, :6] = 2
    assert set(prompts.choose_targets(np.random.default_rng(0), labels, 5)) == {(0, 1)}
    assert prompts.choose_targets(np.random.default_rng(0), labels_of((1, 1, slice(0, 9))), 5) == []


def test_a_pool_takes_in_what_comes_later(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no scenes of size 64 in .*: run training.scenes.render first"):
        prompts.Pool(tmp_path, SIDE)
    write_pool(tmp_path)
    pool = prompts.Pool(tmp_path, SIDE)
    write_pool(tmp_path, "64-1-001.npy")
    write_pool(tmp_path, "128-1-000.npy")
    assert len(pool) == 2
    pool.refresh()
    assert len(pool) == 4


# ---- prompts


def two_masks(times: int) -> Tensor:
    """A rectangle and a disc of 32×32 cells (of 4 pixels each), so many times."""
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, 0, 3:9, 10:30] = 1
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    masks[1, 0] = ((rows - 16) ** 2 + (columns - 16) ** 2 < 100).float()
    return masks.repeat(times, 1, 1, 1)


def at(masks: Tensor, clicks: Tensor) -> Tensor:
    """What the masks are where the clicks are."""
    cells = (clicks / prompts.STRIDE).long()
    return masks[torch.arange(len(masks)), 0, cells[:, 1], cells[:, 0]]


@pytest.mark.parametrize("inner", [0, 1, 2])
def test_clicks_lie_in_their_masks(inner: int) -> None:
    torch.manual_seed(inner)
    masks = two_masks(200)
    assert at(masks, prompts.random_clicks(masks, torch.full((400,), float(inner)))).all()


def test_inner_clicks_lie_deeper() -> None:
    torch.manual_seed(0)
    masks = two_masks(200)
    depths = [
        at(prompts.depth(masks), prompts.random_clicks(masks, torch.full((400,), inner))).mean() for inner in (0.0, 2.0)
    ]
    assert depths[1] > depths[0] + 0.5


def test_boxes_without_noise_are_exact() -> None:
    rectangle, disc = prompts.boxes(two_masks(1), 0)
    assert rectangle.tolist() == [[40, 12], [120, 36]]
    assert disc.tolist() == [[28, 28], [104, 104]]


def test_noisy_boxes_stay_near() -> None:
    torch.manual_seed(0)
    exact, noisy = prompts.boxes(two_masks(200), 0), prompts.boxes(two_masks(200), 0.1)

    off = (noisy - exact).abs() / (exact[:, 1:] - exact[:, :1])

    assert 0.07 < float(off.max()) <= 0.1
    # Some boxes hardly move at all, with all their corners.
    assert float(off.amax((1, 2)).min()) < 0.01


@pytest.mark.parametrize(("kind", "labels"), [("click", [1]), ("box", [2, 3]), ("both", [2, 3, 1])])
def test_opening_prompts_have_sam2s_labels(kind: str, labels: list[int]) -> None:
    masks = two_masks(3)
    points, found = prompts.first_prompt(kind, masks)
    assert points is not None
    assert found is not None
    assert points.shape == (6, len(labels), 2)
    assert found.tolist() == [labels] * 6
    if labels[-1] == prompts.FOREGROUND:
        assert at(masks, points[:, -1]).all()


def test_no_prompt_is_none() -> None:
    assert prompts.first_prompt("none", two_masks(1)) == (None, None)


def test_corrections_go_where_the_guess_is_wrong_and_say_how() -> None:
    torch.manual_seed(0)
    masks = two_masks(100)
    smaller, larger = masks.clone(), masks.clone()
    smaller[..., 16:] = 0
    larger[..., 20:, :] = 1

    for guess, label in ((smaller, 1), (larger, 0)):
        clicks, labels = prompts.correction(masks, guess)
        assert (labels == label).all()
        assert (at(masks, clicks[:, 0]) == label).all()
        assert (at(guess, clicks[:, 0]) == 1 - label).all()


def test_a_perfect_guess_is_clicked_again() -> None:
    masks = two_masks(50)
    clicks, labels = prompts.correction(masks, masks)
    assert (labels == 1).all()
    assert at(masks, clicks[:, 0]).all()
