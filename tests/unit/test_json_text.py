"""The default JSON answer: what it says, and that bands of any size make the same text."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pytest

from deployments.encoding.json_text import encode_band
from deployments.messages.pieces import cut_band, num_rows
from deployments.messages.segmentation import Segmentation

BuildSegmentation = Callable[..., Segmentation]

OBJECTS = [
    pytest.param(1, False, id="no-object-axis"),
    pytest.param(1, True, id="one-object"),
    pytest.param(3, True, id="three-objects"),
]


def band_text(segmentation: Segmentation, start: int, stop: int, return_logits: bool) -> bytes:
    return encode_band(cut_band(segmentation, start, stop), return_logits)


def whole(segmentation: Segmentation, return_logits: bool = True) -> bytes:
    return band_text(segmentation, 0, num_rows(segmentation), return_logits)


def parsed(body: bytes) -> dict[str, Any]:
    """The answer's three strings, each parsed."""
    answer = orjson.loads(body)
    assert all(isinstance(text, str) for text in answer.values())
    return {name: json.loads(text) for name, text in answer.items()}


@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize(("objects", "has_object_axis"), OBJECTS)
def test_the_body_says_what_the_segmentation_holds(
    segmentation_of: BuildSegmentation, objects: int, has_object_axis: bool, return_logits: bool
) -> None:
    segmentation = segmentation_of((20, 31), objects=objects, has_object_axis=has_object_axis)

    answer = parsed(whole(segmentation, return_logits))

    assert list(answer) == ["masks", "scores", "logits"]
    np.testing.assert_array_equal(np.float32(answer["masks"]), segmentation.masks(return_logits).astype(np.float32))
    np.testing.assert_array_equal(np.float32(answer["scores"]), segmentation.scores)
    np.testing.assert_array_equal(np.float32(answer["logits"]), segmentation.logits)


@pytest.mark.parametrize(
    ("objects", "candidates", "has_object_axis", "shape"),
    [
        (1, 3, False, (3, 8, 5)),
        (1, 1, False, (1, 8, 5)),
        (1, 3, True, (1, 3, 8, 5)),
        (1, 1, True, (1, 1, 8, 5)),
        (3, 3, True, (3, 3, 8, 5)),
        (3, 1, True, (3, 1, 8, 5)),
    ],
)
def test_brackets_follow_the_object_axis(
    segmentation_of: BuildSegmentation, objects: int, candidates: int, has_object_axis: bool, shape: tuple[int, ...]
) -> None:
    answer = parsed(whole(segmentation_of((8, 5), objects, candidates, has_object_axis), return_logits=False))

    assert np.shape(answer["masks"]) == shape
    assert np.shape(answer["scores"]) == shape[:-2]
    assert np.shape(answer["logits"]) == (*shape[:-2], 256, 256)


@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize("band", [1, 2, 6, 7, 13, 20, 1000])
@pytest.mark.parametrize(("objects", "has_object_axis"), OBJECTS)
def test_bands_of_any_size_make_the_same_body(
    segmentation_of: BuildSegmentation, objects: int, has_object_axis: bool, band: int, return_logits: bool
) -> None:
    segmentation = segmentation_of((7, 9), objects=objects, has_object_axis=has_object_axis)
    rows = num_rows(segmentation)

    parts = [band_text(segmentation, start, min(start + band, rows), return_logits) for start in range(0, rows, band)]

    assert b"".join(parts) == whole(segmentation, return_logits)


@pytest.mark.parametrize("seed", range(10))
def test_bands_of_uneven_sizes_make_the_same_body(segmentation_of: BuildSegmentation, seed: int) -> None:
    segmentation = segmentation_of((11, 4), objects=2, has_object_axis=True)
    rows = num_rows(segmentation)
    cuts = np.random.default_rng(seed).choice(np.arange(1, rows), size=9, replace=False)

    parts = [band_text(segmentation, start, stop, True) for start, stop in pairwise([0, *sorted(cuts.tolist()), rows])]

    assert b"".join(parts) == whole(segmentation)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
@pytest.mark.parametrize("return_logits", [True, False])
def test_images_of_one_row_or_pixel_are_written(
    segmentation_of: BuildSegmentation, size: tuple[int, int], return_logits: bool
) -> None:
    segmentation = segmentation_of(size)

    masks = parsed(whole(segmentation, return_logits))["masks"]

    np.testing.assert_array_equal(np.float32(masks), segmentation.masks(return_logits).astype(np.float32))


def test_thresholded_masks_are_the_integers_0_and_1(segmentation_of: BuildSegmentation) -> None:
    text = orjson.loads(whole(segmentation_of((6, 6)), return_logits=False))["masks"]

    assert set(text) == set("[],01")


def test_numbers_are_the_shortest_text_that_reads_back() -> None:
    scores = np.array([[0.1, 1 / 3, 1e-30]], np.float32)
    segmentation = Segmentation("image", "model", (1, 1), np.full((1, 3, 256, 256), 0.1, np.float32), scores, False)

    assert orjson.loads(whole(segmentation))["scores"] == "[0.1,0.33333334,1e-30]"


def test_nothing_in_the_strings_is_escaped(segmentation_of: BuildSegmentation) -> None:
    assert b"\\" not in whole(segmentation_of((5, 5), objects=2, has_object_axis=True))


def test_segmentations_out_of_the_object_store_are_read_only_and_written_all_the_same(
    segmentation_of: BuildSegmentation,
) -> None:
    segmentation = segmentation_of((5, 5))
    expected = whole(segmentation)

    segmentation.low_res_logits.flags.writeable = False
    segmentation.iou_predictions.flags.writeable = False

    assert whole(segmentation) == expected


def test_a_band_carries_no_more_than_its_rows_are_made_of(segmentation_of: BuildSegmentation) -> None:
    segmentation = segmentation_of((1080, 1920), objects=100, has_object_axis=True)
    # 216 rows are interpolated from 52 and two neighbours; a mask has 256.
    in_one_mask = cut_band(segmentation, 1080 * 7 + 100, 1080 * 7 + 316)
    assert [(piece.mask, len(piece.rows)) for piece in in_one_mask.masks] == [(7, 53)]
    assert in_one_mask.logits == ()
    assert in_one_mask.masks[0].rows.base is None
    # Where masks end and logits begin.
    between = cut_band(segmentation, 1080 * 300 - 10, 1080 * 300 + 10)
    assert [piece.mask for piece in between.masks] == [299]
    assert [(piece.mask, piece.start, len(piece.rows)) for piece in between.logits] == [(0, 0, 10)]
