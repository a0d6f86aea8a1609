"""What training draws: parts of drawings, scenes of things with parts, and sheets to look at."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from harness.images import iou
from training import photos, scenes, sheets, sprites
from training.parts import find_parts

Picture = NDArray[np.uint8]

# ---- parts


def drawing(ground: tuple[int, int, int]) -> Picture:
    """A drawing (RGBA) of one colour with a transparent rim."""
    found = np.zeros((120, 120, 4), np.uint8)
    found[10:110, 10:110] = (*ground, 255)
    return found


def test_parts_with_clear_edges_are_found_and_what_lies_inside_them() -> None:
    flat = drawing((200, 30, 30))
    flat[30:70, 30:70, :3] = (40, 60, 220)
    flat[40:56, 44:60, :3] = (250, 230, 40)
    flat[80:100, 70:100, :3] = (30, 180, 60)

    parts, subparts = find_parts(flat)

    expected = np.zeros((2, 120, 120), np.uint8)
    expected[0, 30:70, 30:70], expected[0, 80:100, 70:100], expected[1, 40:56, 44:60] = 1, 2, 3
    for found, wanted in zip((parts, subparts), expected, strict=True):
        assert set(np.unique(found)) == set(np.unique(wanted))
        for number in set(np.unique(wanted)) - {0}:
            assert iou(found == number, wanted == number) > 0.8
    assert (parts[subparts > 0] == 1).all()


def test_bands_of_a_gradient_are_no_parts() -> None:
    shaded = drawing((200, 30, 30))
    shaded[..., 0] = np.linspace(20, 255, 120)[:, None]
    shaded[50:70, 50:70, :3] = (10, 20, 250)

    parts, subparts = find_parts(shaded)

    square = np.zeros((120, 120), bool)
    square[50:70, 50:70] = True
    assert parts.max() == 1
    assert iou(parts == 1, square) > 0.8
    assert not subparts.any()


# ---- scenes


@pytest.fixture(autouse=True)
def known_sprites(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sprite instead of Debian's, opaque, with a part and a part of that; no photographs."""
    square = np.full((80, 80, 6), (250, 20, 20, 255, 0, 0), np.uint8)
    square[20:60, 20:60] = (20, 250, 20, 255, 1, 0)
    square[30:50, 30:50] = (20, 20, 250, 255, 1, 2)
    monkeypatch.setattr(sprites, "load", lambda held_out: [square])
    monkeypatch.setattr(photos, "found", lambda held_out: ())


def rendered(seed: int) -> scenes.Scene:
    return scenes.render(np.random.default_rng(seed), 120, 160, held_out=False)


def test_every_part_lies_in_one_object_and_every_part_of_a_part_in_one_part() -> None:
    levels_seen = set()
    for seed in range(25):
        scene = rendered(seed)
        assert scene.image.shape == scene.labels.shape == (120, 160, 3)
        assert scene.image.dtype == scene.labels.dtype == np.uint8
        assert 1 <= scene.objects.max() <= 9
        for level in (1, 2):
            for number in set(np.unique(scene.labels[..., level])) - {0}:
                [holder] = np.unique(scene.labels[scene.labels[..., level] == number][:, level - 1])
                assert holder > 0
                levels_seen.add(level)
    assert levels_seen == {1, 2}


def test_the_same_seed_gives_the_same_scene() -> None:
    one, same, other = rendered(3), rendered(3), rendered(4)
    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert (one.labels != other.labels).any()


def test_labels_are_where_things_were_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "cast_shadow", lambda *_: None)
    monkeypatch.setattr(scenes, "SPRITE_SHARE", 1.0)
    monkeypatch.setattr(scenes, "ATTACHED_SHARE", 0.0)
    for seed in range(25):
        canvas = np.full((160, 200, 3), 128, np.float32)
        painter = scenes.Painter(np.random.default_rng(seed), canvas, held_out=False)
        for _ in range(2):
            painter.add(0.6)
        whole, part, inner = np.moveaxis(painter.labels, 2, 0) > 0
        painted = np.abs(canvas - 128).max(2)
        assert painted[whole].min() > 20
        # The outermost pixels are painted too, but less than half covered.
        assert painted[~whole].max() < 80
        # The sprite is red, its part green, and the part of that blue; pixels between them are mixed.
        for channel, seen in enumerate((whole & ~part, part & ~inner, inner)):
            assert (canvas.argmax(2)[seen] == channel).mean() > 0.85


def test_what_is_put_down_later_is_in_front() -> None:
    canvas = np.zeros((60, 60, 3), np.float32)
    painter = scenes.Painter(np.random.default_rng(0), canvas, held_out=False)
    for _ in range(6):
        before = painter.labels[..., 0].copy()
        painter.add(0.5)
        changed = painter.labels[..., 0] != before
        assert set(np.unique(painter.labels[changed])) >= {before.max() + 1}
        assert (painter.labels[..., 0][changed] == before.max() + 1).all()


# ---- sheets


def test_a_strip_shows_the_image_and_then_each_mask_over_it() -> None:
    image = np.full((40, 80, 3), 100, np.uint8)
    masks = [np.zeros((40, 80), bool), np.ones((40, 80), bool)]
    masks[0][20:, :40] = True

    strip = np.asarray(sheets.strip(image, (60.0, 10.0), masks, ["", ""], 160)).astype(int)

    assert strip.shape == (160, 480, 3)
    tinted = (strip[:80, :, 0] > 150) & (strip[:80, :, 1] < 60)
    shares = [tinted[:, column : column + 160].mean() for column in (0, 160, 320)]
    assert shares == pytest.approx([0, 0.25, 1], abs=0.01)
    assert tinted[60, 160 + 20]
    assert not strip[80:].any()
    for column in (0, 160, 320):
        assert strip[20, column + 120].tolist() == [255, 255, 0]


def test_a_sheet_holds_its_strips_below_each_other(tmp_path: Path) -> None:
    image = np.full((20, 20, 3), 100, np.uint8)
    strips = [sheets.strip(image + index, (1, 1), [], [], 20) for index in range(3)]

    sheets.save(strips, tmp_path / "sheet.png")

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (20, 60)
        assert [sheet.getpixel((15, 15 + 20 * index)) for index in range(3)] == [(100 + i,) * 3 for i in range(3)]
