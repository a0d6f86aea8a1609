"""The fit of the scores after training: the score head learns, and nothing else."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import prompts, scores
from training.model.network import Decoded, build_model
from training.prompts import BOX_START
from training.scenes import render as scenes
from training.tests.pools import SIDE, write_pool

HEAD = "sam_mask_decoder.iou_prediction_head."


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Small scenes; no other processes; each step takes a second."""
    write_pool(tmp_path)
    monkeypatch.setattr(scenes, "POOL_FOLDER", tmp_path)
    monkeypatch.setattr(scores, "SIZE", SIDE)
    monkeypatch.setattr(scores, "REPORT_EVERY", 10)
    monkeypatch.setattr(scores, "time", SimpleNamespace(process_time=count().__next__))
    monkeypatch.setattr(
        scores, "learning", SimpleNamespace(mean_gradients=lambda _: None, latest=lambda seconds: seconds)
    )
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("pool")
def test_only_the_scores_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    checkpoint = tmp_path / "model.safetensors"
    save_file({name: value.half() for name, value in build_model().state_dict().items()}, checkpoint, {"made": "here"})
    before = load_file(checkpoint)

    scores.fit(0, checkpoint, minutes=40 / 60, lr=1e-2, half=False)

    after = load_file(checkpoint)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(HEAD) for name in changed)
    assert {value.dtype for value in after.values()} == {torch.float16}
    with safe_open(checkpoint, "pt") as opened:
        assert opened.metadata() == {"made": "here"}
    errors = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 4
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.usefixtures("pool")
def test_an_error_counts_by_how_often_such_a_thing_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    batches: list[prompts.Batch] = []

    def make_batch(*arguments: Any) -> prompts.Batch:
        batches.append(prompts.make_batch(*arguments))
        return batches[-1]

    def decode(_: Any, features: str, owner: Tensor, points: Tensor, labels: Tensor, previous: None) -> Decoded:
        """Perfect masks; a click's scores know nothing of parts, a box's of nothing."""
        assert features == "features"
        (batch,) = batches
        is_box = bool((labels == BOX_START).any())
        known = (batch.levels == 0).float() * (not is_box)
        return Decoded((batch.targets.expand(-1, 4, -1, -1) > 0.5) * 20.0 - 10, known[:, None].expand(-1, 4))

    monkeypatch.setattr(scores, "make_batch", make_batch)
    monkeypatch.setattr(scores, "encode", lambda *_: "features")
    monkeypatch.setattr(scores, "decode", decode)

    loss = scores._loss(None, np.random.default_rng(0), prompts.Pool(tmp_path, SIDE), half=False)

    wholes, parts, smaller = torch.bincount(batches[0].levels, minlength=3).tolist()
    assert min(wholes, parts, smaller) > 0
    weight_of_parts = 0.12 * parts + 0.06 * smaller
    of_clicks = weight_of_parts / (wholes + weight_of_parts)
    assert float(loss) == pytest.approx(0.7 * of_clicks + 0.3)
