"""The picture of a training run."""

from pathlib import Path

import numpy as np
from PIL import Image

from training.pictures import curve_picture


def note(minutes: float, size: int, click: float, **more: float) -> dict[str, float]:
    return {"minutes": minutes, "size": size, "one_click_best_of_three": click, **more}


def test_a_curve_has_a_line_for_clicks_one_for_boxes_and_a_colour_for_each_size(tmp_path: Path) -> None:
    # The first check of an old run had no box.
    curve = [note(6, 128, 0.3), note(12, 128, 0.5, box=0.6), note(18, 256, 0.6, box=0.7)]
    figure = curve_picture(curve)
    [axes] = figure.axes
    clicks, boxes, *points = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert clicks == [[6, 0.3], [12, 0.5], [18, 0.6]]
    assert boxes == [[12, 0.6], [18, 0.7]]
    assert points == [[[6, 0.3], [12, 0.5]], [[18, 0.6]]]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["128 pixels", "256 pixels"]
    figure.savefig(tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > picture.height > 200
