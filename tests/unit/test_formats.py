"""Each response format reads back, with the libraries that its users have, to the very mask that went in."""

import io
import json
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from deployments.encoding import npz, png, polygons, rle
from deployments.encoding.response_encoder import WRITERS, encode_piece
from deployments.errors import InvalidRequest
from deployments.messages.answer_format import RESPONSE_FORMATS, TRAITS, AnswerFormat, ResponseFormat
from deployments.messages.everything import AutomaticMasks
from deployments.messages.mask_set import MaskSet
from deployments.messages.pieces import BYTES_PER_PART, PIXELS_PER_PART, cut
from deployments.messages.segmentation import Segmentation
from harness.images import iou
from tests.masks import Mask, masks

BuildSegmentation = Callable[..., Segmentation]

many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def drawn(geometry: dict[str, Any], size: tuple[int, int]) -> Mask:
    """The pixels whose centres are inside."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.asarray(shapely.contains_xy(shapely.geometry.shape(geometry), x, y))


@many
@given(masks())
def test_rle_is_what_pycocotools_reads(mask: Mask) -> None:
    written = json.loads(json.dumps(rle.segmentation(mask)))
    assert written["size"] == list(mask.shape)
    np.testing.assert_array_equal(coco.decode(written), mask)
    assert coco.area(written) == mask.sum()


@many
@given(masks())
def test_exact_polygons_are_valid_geojson_of_the_masks_area(mask: Mask) -> None:
    written = json.loads(json.dumps(polygons.segmentation(mask, 0)))
    geometry = shapely.geometry.shape(written)
    assert shapely.is_valid_reason(geometry) == "Valid Geometry"
    assert geometry.area == mask.sum()
    np.testing.assert_array_equal(drawn(written, mask.shape), mask)
    for rings in written["coordinates"]:
        assert all(ring[0] == ring[-1] for ring in rings)
        assert [shapely.LinearRing(ring).is_ccw for ring in rings] == [True] + [False] * (len(rings) - 1)


@many
@given(masks(), st.sampled_from([0.5, 1, 3, 10, 40, 100]))
def test_simplified_polygons_are_valid_and_lose_no_more_than_they_may(mask: Mask, tolerance: float) -> None:
    written = polygons.segmentation(mask, tolerance)
    # Of a MultiPolygon this says also that its parts are disjoint, and that holes are inside their polygons.
    whole = shapely.geometry.shape(written)
    assert shapely.is_valid_reason(whole) == "Valid Geometry"
    assert shapely.union_all(shapely.get_parts(whole)).area == pytest.approx(whole.area)
    if mask.any():
        y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
        geometry = shapely.geometry.shape(written)
        # A slanting edge may go through the very centre of a pixel, which libraries then draw or leave out.
        either_way = shapely.intersects_xy(geometry, x, y) & ~shapely.contains_xy(geometry, x, y)
        assert iou(np.where(either_way, mask, drawn(written, mask.shape)), mask) >= 1 - 0.01 * tolerance
    assert bool(written["coordinates"]) == mask.any()


def test_simplifying_leaves_out_corners() -> None:
    y, x = np.mgrid[:400, :400]
    disc = (x - 200) ** 2 + (y - 200) ** 2 < 150**2
    corners = [len(polygons.segmentation(disc, tolerance)["coordinates"][0][0]) for tolerance in (0, 1, 5)]
    assert corners[0] > 400
    assert 100 > corners[1] > corners[2]
    assert iou(drawn(polygons.segmentation(disc, 1), (400, 400)), disc) > 0.99


@many
@given(masks())
def test_png_is_an_8_bit_mask(mask: Mask) -> None:
    image = Image.open(io.BytesIO(png.encode(mask)))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), mask * 255)


@many
@given(st.lists(masks(), min_size=1, max_size=3))
def test_npz_is_read_without_pickle(parts: list[Mask]) -> None:
    shape = parts[0].shape
    stacked = np.stack([np.resize(part, shape) for part in parts])
    scores = np.arange(len(parts), dtype=np.float32)
    data = npz.encode(iter(stacked), stacked.shape, {"scores": scores})
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        assert archive["masks"].dtype == np.bool_
        np.testing.assert_array_equal(archive["masks"], stacked)
        np.testing.assert_array_equal(archive["scores"], scores)


def test_a_label_image_has_parts_on_top_of_wholes_and_grows_to_16_bits() -> None:
    whole, part = np.ones((20, 30), np.bool_), np.zeros((20, 30), np.bool_)
    part[5:10, 5:10] = True
    for order in ([whole, part], [part, whole]):
        labels = np.asarray(Image.open(io.BytesIO(png.encode_labels(order, (20, 30)))))
        assert labels.dtype == np.uint8
        assert (labels == np.where(part, 2 if order[1] is part else 1, 2 if order[1] is whole else 1)).all()
    singles = np.zeros((300, 20, 30), np.bool_)
    singles.reshape(300, -1)[np.arange(300), np.arange(300)] = True
    labels = np.asarray(Image.open(io.BytesIO(png.encode_labels(singles, (20, 30)))))
    np.testing.assert_array_equal(labels.reshape(-1)[:301], [*range(1, 301), 0])
    none = np.asarray(Image.open(io.BytesIO(png.encode_labels([], (20, 30)))))
    assert none.shape == (20, 30)
    assert not none.any()


# ---- whole answers


def written(masks: MaskSet, form: AnswerFormat) -> bytes:
    return b"".join(encode_piece(piece, form) for piece in cut(masks, form, 5_000_000))


def automatic_masks(size: tuple[int, int], count: int) -> AutomaticMasks:
    rng = np.random.default_rng(count)
    height, width = size
    boxes = [[0, 0, width, height], [3, 4, width - 5, height - 6]] * count
    return AutomaticMasks(
        image_id="1" * 64,
        model_id="sam2-demo",
        image_size=size,
        low_res_logits=rng.normal(0, 9, (count, 256, 256)).astype(np.float32),
        predicted_iou=rng.random(count, np.float32),
        stability_score=rng.random(count, np.float32),
        point_coords=rng.random((count, 2), np.float32),
        crop_boxes=np.array(boxes, np.int32).reshape(-1, 4)[:count],
    )


@pytest.mark.parametrize("kind", ["rle", "polygons"])
@pytest.mark.parametrize(("objects", "has_object_axis"), [(1, False), (1, True), (3, True)])
@pytest.mark.parametrize("pixels_per_part", [1, PIXELS_PER_PART])
def test_records_hold_the_default_answers_masks(
    kind: ResponseFormat,
    objects: int,
    has_object_axis: bool,
    pixels_per_part: int,
    segmentation_of: BuildSegmentation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.messages.pieces.PIXELS_PER_PART", pixels_per_part)
    segmentation = segmentation_of((40, 61), objects=objects, has_object_axis=has_object_axis)
    form = AnswerFormat(kind, tolerance=0 if kind == "polygons" else None)
    assert len(list(cut(segmentation, form, 5_000_000))) == (objects if pixels_per_part == 1 else 1)
    answer = json.loads(written(segmentation, form))
    assert list(answer) == ["image_id", "model_id", "size", "masks"]
    assert (answer["image_id"], answer["model_id"], answer["size"]) == ("0" * 64, "sam2-demo", [40, 61])
    lists = answer["masks"] if has_object_axis else [answer["masks"]]
    read = coco.decode if kind == "rle" else lambda geometry: drawn(geometry, (40, 61))
    masks = np.array([[read(record["segmentation"]) for record in records] for records in lists])
    np.testing.assert_array_equal(masks if has_object_axis else masks[0], segmentation.masks())
    scores = np.array([[record["score"] for record in records] for records in lists], np.float32)
    np.testing.assert_array_equal(scores, segmentation.iou_predictions)
    for record, mask in zip(chain(*lists), masks.reshape(-1, 40, 61), strict=True):
        assert list(record) == ["segmentation", "score", "area", "bbox"]
        assert record["area"] == mask.sum()
        assert record["bbox"] == coco.toBbox(coco.encode(np.asfortranarray(mask.astype(np.uint8)))).tolist()


@pytest.mark.parametrize("kind", ["rle", "polygons", "npz"])
def test_logits_that_were_asked_for_can_be_sent_back(kind: ResponseFormat, segmentation_of: BuildSegmentation) -> None:
    segmentation = segmentation_of((8, 9), scale=40.0)
    data = written(segmentation, AnswerFormat(kind, return_logits=True))
    if kind == "npz":
        logits = np.load(io.BytesIO(data))["logits"]
    else:
        records = json.loads(data)["masks"]
        assert np.array(records[0]["logits"]).shape == (1, 256, 256)
        logits = np.array([record["logits"][0] for record in records], np.float32)
    np.testing.assert_array_equal(logits, segmentation.logits)


@pytest.mark.parametrize(("objects", "has_object_axis"), [(1, False), (2, True)])
def test_npz_has_the_shapes_of_the_default_answer(
    objects: int, has_object_axis: bool, segmentation_of: BuildSegmentation
) -> None:
    segmentation = segmentation_of((40, 61), objects=objects, has_object_axis=has_object_axis)
    with np.load(io.BytesIO(written(segmentation, AnswerFormat("npz"))), allow_pickle=False) as archive:
        assert set(archive) == {"masks", "scores"}
        np.testing.assert_array_equal(archive["masks"], segmentation.masks())
        np.testing.assert_array_equal(archive["scores"], segmentation.scores)


def test_png_is_the_best_mask_or_the_one_that_is_asked_for(segmentation_of: BuildSegmentation) -> None:
    segmentation = segmentation_of((40, 61), objects=3, has_object_axis=True)
    masks = segmentation.masks().reshape(-1, 40, 61)
    for index in (None, 0, 4, 8):
        image = np.asarray(Image.open(io.BytesIO(written(segmentation, AnswerFormat("png", mask_index=index)))))
        best = int(segmentation.iou_predictions.argmax())
        np.testing.assert_array_equal(image > 0, masks[best if index is None else index])


@pytest.mark.parametrize("count", [0, 1, 4])
def test_everything_in_each_format(count: int) -> None:
    everything = automatic_masks((40, 61), count)
    masks = everything.masks()
    assert masks.shape == (count, 40, 61)
    outside = np.ones((40, 61), np.bool_)
    outside[4:34, 3:56] = False
    assert not (masks[1::2] & outside).any()
    records = json.loads(written(everything, AnswerFormat("rle")))["masks"]
    assert len(records) == count
    for index, record in enumerate(records):
        assert set(record) == {
            "segmentation",
            "area",
            "bbox",
            "predicted_iou",
            "stability_score",
            "point_coords",
            "crop_box",
        }
        np.testing.assert_array_equal(coco.decode(record["segmentation"]), masks[index])
        assert record["crop_box"] == ([3, 4, 53, 30] if index % 2 else [0, 0, 61, 40])
        assert np.float32(record["predicted_iou"]) == everything.predicted_iou[index]
    archive = np.load(io.BytesIO(written(everything, AnswerFormat("npz"))), allow_pickle=False)
    np.testing.assert_array_equal(archive["masks"], masks)
    assert archive["crop_boxes"].shape == (count, 4)
    labels = np.asarray(Image.open(io.BytesIO(written(everything, AnswerFormat("png")))))
    np.testing.assert_array_equal(labels > 0, masks.any(axis=0))


# ---- options


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"response_format": "rle", "tolerance": 1.0}, "tolerance"),
        ({"response_format": "polygons", "tolerance": -0.1}, "tolerance"),
        ({"response_format": "polygons", "tolerance": float("nan")}, "tolerance"),
        ({"response_format": "polygons", "tolerance": 1e9}, "tolerance"),
        ({"response_format": "npz", "mask_index": 0}, "mask_index"),
        ({"response_format": "png", "return_logits": True}, "return_logits"),
    ],
)
def test_an_option_that_says_nothing_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{named}: "):
        AnswerFormat(**options)


def test_a_mask_that_is_not_there_is_refused_before_any_work() -> None:
    for index in (3, -1):
        with pytest.raises(InvalidRequest, match=r"^mask_index: must be from 0 to 2"):
            AnswerFormat("png", mask_index=index).check_index(3)
    AnswerFormat("png", mask_index=2).check_index(3)


def test_logits_as_text_are_cut_into_parts_too(segmentation_of: BuildSegmentation) -> None:
    segmentation = segmentation_of((8, 9), objects=7, has_object_axis=True)
    form = AnswerFormat("rle", return_logits=True)
    texts = [encode_piece(piece, form) for piece in cut(segmentation, form, 5_000_000)]
    assert len(texts) == 4
    assert max(map(len, texts)) < BYTES_PER_PART
    assert len(json.loads(b"".join(texts))["masks"]) == 7


def test_each_format_has_its_traits_and_its_writer() -> None:
    assert set(RESPONSE_FORMATS) == set(TRAITS) == set(WRITERS)
