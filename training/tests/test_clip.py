"""The documents' clip: what moves in it, where it is hidden, and that the file in the repository shows it."""

import av
import numpy as np
import pytest

from training.clip import CLICK, FPS, HEIGHT, NUM_FRAMES, SHOWN, WIDTH, Frame, frames
from training.model.network import DEMO_FOLDER


@pytest.fixture(scope="module")
def drawn() -> list[Frame]:
    return list(frames())


def test_the_pear_moves_to_the_right_and_is_hidden_for_a_while(drawn: list[Frame]) -> None:
    seen = [int(frame.truth.sum()) for frame in drawn]
    assert len(seen) == NUM_FRAMES
    assert drawn[0].truth[CLICK[1], CLICK[0]]
    before, halfway, hidden, again, after = (seen[index] for index in SHOWN)
    assert hidden == 0
    assert before > 2 * halfway > 0
    assert after > 2 * again > 0
    assert np.nonzero(drawn[-1].truth)[1].min() > np.nonzero(drawn[0].truth)[1].max()


def test_the_file_shows_what_is_drawn(drawn: list[Frame]) -> None:
    path = DEMO_FOLDER / "example.mp4"
    assert path.stat().st_size <= 300_000
    with av.open(str(path)) as file:
        decoded = list(file.decode(video=0))
    assert [float(frame.time or 0) for frame in decoded] == pytest.approx(np.arange(NUM_FRAMES) / FPS, abs=1e-3)
    for frame, one in zip(decoded, drawn, strict=True):
        pixels = frame.to_ndarray(format="rgb24")
        assert pixels.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(pixels.astype(int) - one.pixels).mean() < 4
