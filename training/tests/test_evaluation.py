"""The evaluation of a checkpoint, on photographs too: their list, their outlines, and where they are looked for."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.evaluation import held_out as evaluate
from training.evaluation import photographs
from training.evaluation.photographs import Photograph
from training.scenes import textures

# ---- evaluation


class Brush:
    """Stands in for a predictor: paints a disc around each foreground click and wipes one out around the others."""

    def __init__(self, side: int, radius: int) -> None:
        self.side, self.radius = side, radius
        self.calls: list[dict[str, Any]] = []

    def predict(
        self,
        points: NDArray[np.float64],
        labels: NDArray[np.int64],
        mask_input: NDArray[np.float32] | None,
        multimask_output: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Three masks, of which the second, with the highest score, is painted; or that one alone."""
        rows, columns = np.mgrid[: self.side, : self.side]
        painted = np.zeros((self.side, self.side), bool)
        for (x, y), label in zip(points, labels, strict=True):
            painted[(columns - x) ** 2 + (rows - y) ** 2 < self.radius**2] = label
        number = len(self.calls) + 1
        self.calls.append({"labels": labels.tolist(), "click": points[-1], "mask_input": mask_input, "mask": painted})
        masks = np.stack([~painted, painted, ~painted]).astype(np.float32)
        low_res = np.stack([np.full((4, 4), 10 * number + index, np.float32) for index in range(3)])
        shown = slice(None) if multimask_output else slice(1, 2)
        return masks[shown], np.array([0.1, 0.9, 0.5], np.float32)[shown], low_res[shown]


def disc(side: int, x: int, y: int, radius: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:side, :side]
    inside: NDArray[np.bool_] = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    return inside


def test_iou_of_masks() -> None:
    one, other = disc(40, 10, 10, 5), disc(40, 30, 30, 5)
    assert evaluate.iou(one, one) == 1
    assert evaluate.iou(one, other) == 0
    assert evaluate.iou(one, one | other) == evaluate.iou(one | other, one) == pytest.approx(0.5)
    assert evaluate.iou(one & other, one & other) == 0


def test_the_middle_is_far_from_the_edge() -> None:
    mask = disc(120, 80, 70, 25)
    mask[100:, :100] = True
    assert math.dist(evaluate.middle(mask), (80, 70)) <= 4


def test_the_end_of_the_picture_is_an_edge_too() -> None:
    mask = np.zeros((120, 160), bool)
    mask[10:110, :40] = True
    x, _ = evaluate.middle(mask)
    assert x == pytest.approx(20, abs=4)


def test_the_middle_of_what_is_thin_is_on_it() -> None:
    mask = np.zeros((40, 40), bool)
    mask[21, 3:30] = True
    x, y = evaluate.middle(mask)
    assert mask[int(y), int(x)]


def test_corrections_are_clicked_where_the_last_mask_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CORRECTIONS", 2)
    # Two discs to be found, of which the first brings a piece of their neighbourhood with it.
    truth = (disc(120, 30, 30, 14) & ~disc(120, 30, 12, 12)) | disc(120, 90, 90, 18)
    brush = Brush(120, 18)

    reached = evaluate.corrected(brush, truth)

    first, second, third = brush.calls
    assert first["mask_input"] is None
    assert [first["labels"], second["labels"], third["labels"]] == [[1], [1, 1], [1, 1, 0]]
    wrong = truth
    for call, label in ((first, 1), (second, 1), (third, 0)):
        x, y = call["click"].astype(int)
        assert wrong[y, x]
        assert truth[y, x] == label
        wrong = truth ^ call["mask"]
    # Each goes on from the mask of the highest score: the second of three.
    assert [second["mask_input"].max(), third["mask_input"].max()] == [11, 21]
    assert reached == evaluate.iou(third["mask"], truth)


def test_a_perfect_mask_is_not_corrected() -> None:
    brush = Brush(40, 200)
    assert evaluate.corrected(brush, np.ones((40, 40), bool)) == 1
    assert len(brush.calls) == 1


# ---- photographs


def photograph(**fields: Any) -> Photograph:
    """One of a square whose corners are given."""
    square = ((2.0, 3.0), (6.0, 3.0), (6.0, 9.0), (2.0, 9.0))
    known: dict[str, Any] = {"module": None, "file": "a.png", "click": (4.0, 5.0), "polygons": (square,), **fields}
    return Photograph(name="a", subject="a square", source="nobody", licence="CC0", **known)


def test_the_list_is_of_twelve_photographs_whose_clicks_lie_in_their_outlines() -> None:
    found = photographs.read()
    assert len({one.name for one in found}) == len({one.file for one in found}) == 12
    for one in found:
        x, y = map(int, one.click)
        truth = one.truth(photographs.SIDE, photographs.SIDE)
        assert truth[y, x]
        assert 0.001 < truth.mean() < 0.5
        assert one.licence
        assert one.source


def test_points_are_read_from_text() -> None:
    assert photographs.points("1,2 3.5,-4\n  5,6") == ((1, 2), (3.5, -4), (5, 6))


def test_an_outline_is_filled() -> None:
    expected = np.zeros((12, 10), bool)
    expected[3:9, 2:6] = True
    np.testing.assert_array_equal(photograph().truth(12, 10), expected)


def test_outlines_are_united_and_end_where_the_picture_does() -> None:
    left, right = ((-3, 0), (2, 0), (2, 4), (-3, 4)), ((7, 1), (30, 1), (30, 3), (7, 3))
    expected = np.zeros((4, 10), bool)
    expected[:, :2] = expected[1:3, 7:] = True
    np.testing.assert_array_equal(photograph(polygons=(left, right)).truth(4, 10), expected)


def test_a_packages_photograph_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "pictures_of_a_test"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError")
    (folder / "data" / "a.png").touch()

    assert photograph(module=folder.name, file="data/a.png").find() == folder / "data" / "a.png"
    assert photograph(module=folder.name, file="data/b.png").find() is None
    assert photograph(module="no_such_pictures", file="data/a.png").find() is None
    assert folder.name not in sys.modules


def test_a_wallpaper_is_found_only_where_it_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Path("/wallpapers/Lake/contents/images/2560x1600.jpg")
    monkeypatch.setattr(
        textures, "photographs", lambda held_out: (Path("/a/hill.jpg"), lake) if held_out else (Path("/b.jpg"),)
    )

    assert photograph(file="Lake/contents/images/2560x1600.jpg").find() == lake
    assert photograph(file="hill.jpg").find() == Path("/a/hill.jpg")
    assert photograph(file="b.jpg").find() is None
    assert photograph(file="ill.jpg").find() is None


def test_large_photographs_are_reduced(tmp_path: Path) -> None:
    for size in ((2048, 1000), (300, 200)):
        Image.new("L", size).save(tmp_path / f"{size[0]}.png")
    assert photographs.load(tmp_path / "2048.png").shape == (500, 1024, 3)
    assert photographs.load(tmp_path / "300.png").shape == (200, 300, 3)


class Oracle:
    """Stands in for a predictor: the first of three masks is right, the last, of the highest score, is half of it."""

    def __init__(self, truth: NDArray[np.bool_]) -> None:
        self.truth = truth
        self.image: NDArray[np.uint8] | None = None

    def set_image(self, image: NDArray[np.uint8]) -> None:
        self.image = image

    def predict(self, *_: Any, box: Any = None, multimask_output: bool = True, **__: Any) -> tuple[Any, Any, Any]:
        half = self.truth & (np.arange(self.truth.shape[1]) < 20)
        masks = [self.truth, ~self.truth, half] if multimask_output else [half]
        return np.array(masks, np.float32), np.array([0.2, 0.1, 0.7][: len(masks)]), np.zeros((len(masks), 4, 4))


def test_a_photograph_is_judged_and_shown() -> None:
    corners = ((10.0, 8.0), (30.0, 8.0), (30.0, 24.0), (10.0, 24.0))
    one = photograph(polygons=(corners,), click=(15.0, 15.0))
    image = np.full((32, 64, 3), 90, np.uint8)
    oracle = Oracle(one.truth(32, 64))

    figures, strip = photographs.judge(oracle, one, image)

    assert oracle.image is image
    assert figures == {"click_best": 1, "click_scored": 0.5, "box_single": 0.5, "corrected": 0.5}
    assert strip.size == (4 * evaluate.ROW_SIDE, evaluate.ROW_SIDE // 2)


def test_the_table_has_a_line_for_each_photograph_and_the_means() -> None:
    figures = [dict.fromkeys(photographs.COLUMNS, value) for value in (0.25, 0.75)]
    lines = photographs.table([(photograph(), each) for each in figures]).splitlines()
    assert lines[2:] == [
        "| a: a square | 0.250 | 0.250 | 0.250 | 0.250 | nobody | CC0 |",
        "| a: a square | 0.750 | 0.750 | 0.750 | 0.750 | nobody | CC0 |",
        "| mean of 2 | 0.500 | 0.500 | 0.500 | 0.500 | | |",
    ]
    assert {line.count("|") for line in lines} == {8}


def test_photographs_that_are_not_there_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["photographs"])
    monkeypatch.setattr(Photograph, "find", lambda self: None)

    with pytest.raises(SystemExit, match="2"):
        photographs.main()

    printed = capsys.readouterr().err
    for one in photographs.read():
        assert f"left out: {one.name} ({one.source}): no {one.file}" in printed
    assert "none of the photographs is there" in printed
