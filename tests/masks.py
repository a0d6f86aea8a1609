"""Masks for tests of formats: of every shape, as pixels, and answers that hold given masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from deployments.messages.arrays import FloatArray

Mask = NDArray[np.bool_]


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Noise, blobs, stripes, single pixels, nothing and everything, of any size from one pixel on."""
    height, width = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Noise of few cells, enlarged, is blobs; of as many cells as pixels, noise.
    cells = draw(st.integers(1, 70))
    share = draw(st.sampled_from([0, 0.05, 0.5, 0.95, 1]))
    return random_mask(rng, (height, width), cells, share)


def random_mask(rng: np.random.Generator, size: tuple[int, int], cells: int, share: float) -> Mask:
    """Noise of so many cells in 70 pixels, of which this share is in the mask."""
    height, width = size
    coarse = rng.random((-(-height * cells // 70), -(-width * cells // 70))) < share
    enlarged = Image.fromarray(coarse.view(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(enlarged) > 0


def discs_and_rings(size: tuple[int, int]) -> list[Mask]:
    """Masks as they come: a disc, one with a hole, one with an island in its hole and another beside it, one pixel."""
    y, x = np.mgrid[: size[0], : size[1]]

    def disc(across: float, down: float, radius: float) -> Mask:
        return np.asarray(np.hypot(x - across * size[1], y - down * size[0]) < radius * min(size))

    plain, hole = disc(0.3, 0.4, 0.25), disc(0.5, 0.5, 0.4) & ~disc(0.45, 0.55, 0.2)
    nested = hole | disc(0.45, 0.55, 0.1) | disc(0.95, 0.1, 0.04)
    pixel = np.zeros(size, np.bool_)
    pixel[-1, 3] = True
    return [plain, hole, nested, pixel]


@dataclass(frozen=True, eq=False)
class GivenMasks:
    """A MaskSet of masks that are given as pixels, one for each object.

    Attributes:
        given: `K×H×W` bool.
        scores: of each.
    """

    given: NDArray[np.bool_]
    scores: Sequence[float]
    image_id: str = "0" * 64
    model_id: str = "sam2-demo"

    @property
    def image_size(self) -> tuple[int, int]:
        return self.given.shape[1], self.given.shape[2]

    @property
    def low_res_logits(self) -> FloatArray:
        return np.zeros((len(self.given), 256, 256), np.float32)

    @property
    def logits(self) -> FloatArray:
        return self.low_res_logits

    @property
    def num_objects(self) -> int:
        return len(self.given)

    @property
    def num_masks(self) -> int:
        return len(self.given)

    @property
    def masks_shape(self) -> tuple[int, ...]:
        return self.given.shape

    def mask(self, index: int) -> Mask:
        return np.ascontiguousarray(self.given[index])

    def score(self, index: int) -> float:
        return self.scores[index]

    def facts(self, index: int) -> dict[str, Any]:
        return {"score": self.scores[index]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"scores": np.array(self.scores, np.float32)}

    def objects(self, first: int, last: int) -> "GivenMasks":
        return replace(self, given=self.given[first:last], scores=self.scores[first:last])

    def only(self, index: int) -> "GivenMasks":
        return self.objects(index, index + 1)

    def best_of_each(self) -> "GivenMasks":
        return self

    def shown(self, mask_index: int | None) -> None:
        return None

    def grouped(self, records: list[Any]) -> list[Any]:
        return records

    def check_format(self, answer_format: Any) -> None:
        pass
