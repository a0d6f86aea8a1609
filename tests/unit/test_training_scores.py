"""The fit of the scores after training: the score head learns, and nothing else."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training import scenes, scores
from training.model import build_model

SIDE = 64
HEAD = "sam_mask_decoder.iou_prediction_head."


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A scene of two objects, one with a part; no other processes; each step takes a second."""
    block = np.zeros((1, SIDE, SIDE, 6), np.uint8)
    block[0, 8:40, 6:50, :4] = (255, 255, 255, 1)
    block[0, 12:36, 10:34, 4] = 1
    block[0, 46:60, 30:44, :4] = (200, 200, 200, 2)
    np.save(tmp_path / f"{SIDE}-1-000.npy", block)
    monkeypatch.setattr(scenes, "POOL_FOLDER", tmp_path)
    monkeypatch.setattr(scores, "SIZE", SIDE)
    monkeypatch.setattr(scores, "REPORT_EVERY", 10)
    monkeypatch.setattr(scores, "time", SimpleNamespace(process_time=count().__next__))
    monkeypatch.setattr(
        scores, "together", SimpleNamespace(mean_gradients=lambda _: None, latest=lambda seconds: seconds)
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


def test_each_error_counts_by_how_often_a_thing_of_its_level_is_meant() -> None:
    levels = torch.tensor([0, 1, 1, 1, 1, 1, 2])
    errors = torch.tensor([0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    expected = (0.1 + 5 * 0.12 + 2 * 0.06) / (1 + 5 * 0.12 + 0.06)
    assert float(scores.as_meant(errors, levels)) == pytest.approx(expected)
