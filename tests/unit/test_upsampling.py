"""Upsampling against torch's, and band by band against the whole."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from deployments.messages.arrays import FloatArray
from deployments.messages.upsampling import row_chunks, upsample, upsample_rows

SIZES = [
    (33, 47),
    (1080, 1920),
    (1920, 1080),
    (256, 256),
    (255, 257),
    (512, 512),
    (100, 2000),
    (1, 1),
    (1, 640),
    (480, 1),
    (2, 3),
    (777, 333),
]


def logits(*shape: int, scale: float = 20.0, seed: int = 0) -> FloatArray:
    """Noise: steeper from pixel to pixel than any real mask."""
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("size", SIZES)
def test_upsampling_gives_what_torch_gives(size: tuple[int, int], scale: float) -> None:
    low_res = logits(2, 256, 256, scale=scale)

    expected = interpolate(torch.from_numpy(low_res)[None], size, mode="bilinear", align_corners=False)[0].numpy()

    np.testing.assert_allclose(upsample(low_res, size), expected, rtol=0, atol=1e-5 * np.abs(low_res).max())


@pytest.mark.parametrize("rows_per_band", [1, 7, 64, 10_000])
@pytest.mark.parametrize("size", [(33, 47), (300, 400), (1, 5), (257, 1)])
def test_bands_are_the_whole_bit_for_bit(size: tuple[int, int], rows_per_band: int) -> None:
    low_res = logits(256, 256)

    parts = [upsample_rows(low_res, size, start, stop) for start, stop in row_chunks(*size, rows_per_band * size[1])]

    np.testing.assert_array_equal(np.concatenate(parts), upsample(low_res, size))


def test_leading_axes_are_kept() -> None:
    low_res = logits(2, 3, 256, 256)

    masks = upsample(low_res, (40, 30))

    assert masks.shape == (2, 3, 40, 30)
    assert masks.dtype == np.float32
    np.testing.assert_array_equal(masks[1, 2], upsample(low_res[1, 2], (40, 30)))


@pytest.mark.parametrize(
    ("height", "width", "numbers", "expected"),
    [
        (5, 10, 20, [(0, 2), (2, 4), (4, 5)]),
        (4, 10, 40, [(0, 4)]),
        (3, 100, 1, [(0, 1), (1, 2), (2, 3)]),
        (1, 1, 1000, [(0, 1)]),
    ],
)
def test_bands_cover_all_rows_once(height: int, width: int, numbers: int, expected: list[tuple[int, int]]) -> None:
    assert list(row_chunks(height, width, numbers)) == expected


def test_a_constant_mask_stays_constant() -> None:
    assert (upsample(np.full((256, 256), 3.25, np.float32), (700, 900)) == np.float32(3.25)).all()
