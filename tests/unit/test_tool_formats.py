"""The files for annotation tools, read as the tools' formats are described: each holds the very mask that went in.

`make test-tools` reads the same files with the tools' own code.
"""

import base64
import io
import json
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from deployments.encoding.davis import davis_palette
from deployments.encoding.response_encoder import encode_piece
from deployments.errors import InvalidRequest, TooLarge
from deployments.messages.answer_format import TRAITS, AnswerFormat, ResponseFormat
from deployments.messages.mask_set import MaskSet
from deployments.messages.names import name_of_upload
from deployments.messages.pieces import cut
from deployments.messages.segmentation import Segmentation
from harness.images import iou
from tests.masks import GivenMasks, Mask, discs_and_rings, masks

many = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
BuildSegmentation = Callable[..., Segmentation]
Read = Callable[[bytes, tuple[int, int]], list[Mask]]

TOOLS = [name for name, traits in TRAITS.items() if traits.one_mask_an_object and not traits.is_georeferenced]
HOSTILE = "\"<é&'>]]> \\ 犬"


def written(found: MaskSet, kind: ResponseFormat, **options: Any) -> bytes:
    form = AnswerFormat(kind, **options)
    return b"".join(encode_piece(piece, form) for piece in cut(found, form, 5_000_000))


def given_masks(*found: Mask) -> GivenMasks:
    return GivenMasks(np.stack(found), [0.9 - index / 10 for index in range(len(found))])


# ---- readers, by the formats' descriptions


def read_coco(data: bytes, size: tuple[int, int]) -> list[Mask]:
    dataset = COCO()
    dataset.dataset = json.loads(data)
    dataset.createIndex()
    [image] = dataset.loadImgs(dataset.getImgIds())
    assert (image["height"], image["width"]) == size
    records = dataset.loadAnns(dataset.getAnnIds(imgIds=[image["id"]], iscrowd=False))
    found = [dataset.annToMask(record) > 0 for record in records]
    assert all(dataset.cats[record["category_id"]]["name"] == "object" for record in records)
    return found


def read_coco_results(data: bytes, size: tuple[int, int]) -> list[Mask]:
    records = json.loads(data)
    assert all(set(record) == {"image_id", "category_id", "segmentation", "score"} for record in records)
    assert all(record["segmentation"]["size"] == list(size) for record in records)
    return [coco_mask.decode(record["segmentation"]) > 0 for record in records]


def read_cvat(data: bytes, size: tuple[int, int]) -> list[Mask]:
    root = ET.fromstring(data)
    assert (root.tag, root.findtext("version")) == ("annotations", "1.1")
    [image] = root.findall("image")
    assert (int(image.attrib["height"]), int(image.attrib["width"])) == size
    found = []
    for element in image.findall("mask"):
        left, top, width, height = (int(element.attrib[name]) for name in ("left", "top", "width", "height"))
        values: list[int] = []
        for index, run in enumerate(element.attrib["rle"].split(", ")):
            values += [index % 2] * int(run)
        mask = np.zeros(size, np.bool_)
        mask[top : top + height, left : left + width] = np.reshape(values, (height, width))
        found.append(mask)
    return found


def bits_of(numbers: list[int]) -> Callable[[int], int]:
    bits = "".join(f"{number:08b}" for number in numbers)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    return read


def read_labelstudio(data: bytes, size: tuple[int, int]) -> list[Mask]:
    [task] = json.loads(data)
    found = []
    for region in task["predictions"][0]["result"]:
        assert (region["original_height"], region["original_width"], region["type"]) == (*size, "brushlabels")
        assert region["value"]["format"] == "rle"
        read = bits_of(region["value"]["rle"])
        count, word, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
        values: list[int] = []
        while len(values) < count:
            repeats, length = read(1), read(sizes[read(2)]) + 1
            values += [read(word)] * length if repeats else [read(word) for _ in range(length)]
        pixels = np.reshape(values, (*size, 4))
        assert (pixels == pixels[..., 3:]).all()
        assert set(np.unique(pixels)) <= {0, 255}
        found.append(pixels[..., 3] > 0)
    return found


def grouped(parts: Iterator[tuple[Any, Mask]]) -> list[Mask]:
    """Puts the parts of an object together."""
    found: dict[Any, Mask] = {}
    for key, mask in parts:
        found[key] = found[key] | mask if key in found else mask
    return list(found.values())


def read_labelstudio_polygons(data: bytes, size: tuple[int, int]) -> list[Mask]:
    [task] = json.loads(data)

    def parts() -> Iterator[tuple[str, Mask]]:
        for region in task["predictions"][0]["result"]:
            assert (region["type"], region["value"]["polygonlabels"]) == ("polygonlabels", ["object"])
            ring = np.array(region["value"]["points"]) / 100 * (size[1], size[0])
            runs = coco_mask.frPyObjects([ring.reshape(-1).tolist()], *size)
            yield region["id"].split("-")[0], coco_mask.decode(coco_mask.merge(runs)) > 0

    return grouped(parts())


def read_labelme(data: bytes, size: tuple[int, int]) -> list[Mask]:
    document = json.loads(data)
    assert (document["imageHeight"], document["imageWidth"], document["imageData"]) == (*size, None)
    found = []
    for shape in document["shapes"]:
        assert shape["shape_type"] == "mask"
        (left, top), (right, bottom) = shape["points"]
        mask = np.zeros(size, np.bool_)
        crop = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
        mask[top : bottom + 1, left : right + 1] = crop.astype(np.bool_)
        found.append(mask)
    return found


def filled_with_its_line(ring: np.ndarray[Any, Any], size: tuple[int, int]) -> Mask:
    image = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in ring.tolist()], fill=1, outline=1)
    return np.asarray(image) > 0


def read_labelme_polygons(data: bytes, size: tuple[int, int]) -> list[Mask]:
    def parts() -> Iterator[tuple[int, Mask]]:
        for shape in json.loads(data)["shapes"]:
            assert shape["shape_type"] == "polygon"
            assert len(shape["points"]) >= 3
            yield shape["group_id"], filled_with_its_line(np.array(shape["points"]), size)

    return grouped(parts())


def read_yolo(data: bytes, size: tuple[int, int]) -> list[Mask]:
    found = []
    for line in data.decode().splitlines():
        name, *numbers = line.split(" ")
        ring = np.array(numbers, np.float32).reshape(-1, 2)
        assert name == "0"
        assert len(ring) >= 3
        assert ((ring > 0) & (ring < 1)).all()
        found.append(filled_with_its_line(ring * (size[1], size[0]), size))
    return found


def read_qupath(data: bytes, size: tuple[int, int]) -> list[Mask]:
    document = json.loads(data)
    assert document["type"] == "FeatureCollection"
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    found, ids = [], set()
    for feature in document["features"]:
        ids.add(uuid.UUID(feature["id"]))
        assert feature["properties"]["objectType"] == "annotation"
        geometry = shapely.geometry.shape(feature["geometry"])
        assert geometry.is_valid
        assert geometry.geom_type == ("Polygon" if len(shapely.get_parts(geometry)) == 1 else "MultiPolygon")
        found.append(np.asarray(shapely.contains_xy(geometry, x, y)))
    assert len(ids) == len(found)
    return found


EXACT: dict[ResponseFormat, Read] = {
    "coco": read_coco,
    "coco_rle": read_coco,
    "coco_results": read_coco_results,
    "cvat": read_cvat,
    "labelstudio": read_labelstudio,
    "labelstudio_polygons": read_labelstudio_polygons,
    "labelme": read_labelme,
    "labelme_polygons": read_labelme_polygons,
    "qupath": read_qupath,
}
"""Formats from which masks come back as they were, holes and islands included."""

READERS = EXACT | {"yolo": read_yolo}


# ---- masks


@pytest.mark.parametrize("kind", EXACT)
@many
@given(masks())
def test_the_mask_comes_back(kind: ResponseFormat, mask: Mask) -> None:
    found = EXACT[kind](written(given_masks(mask), kind), mask.shape)
    assert len(found) == mask.any()
    if mask.any():
        np.testing.assert_array_equal(found[0], mask)


@many
@given(masks())
def test_yolo_adds_nothing_but_the_bridges_between_islands(mask: Mask) -> None:
    found = read_yolo(written(given_masks(mask), "yolo"), mask.shape)
    assert len(found) == mask.any()
    if mask.any():
        assert not (mask & ~found[0]).any()
        regions = len(json.loads(written(given_masks(mask), "coco"))["annotations"][0]["segmentation"])
        longest = max(mask.shape)
        assert (found[0] & ~mask).sum() <= (regions - 1) * longest
        if regions == 1:
            np.testing.assert_array_equal(found[0], mask)


def test_yolos_corners_find_their_pixel_by_rounding_down_and_to_the_nearest() -> None:
    size = (480, 641)
    data = written(given_masks(*discs_and_rings(size)), "yolo")
    for line in data.decode().splitlines():
        corners = np.array(line.split()[1:], np.float32).reshape(-1, 2) * np.array([size[1], size[0]], np.float32)
        np.testing.assert_array_equal(np.floor(corners), np.round(corners))


def test_yolos_bridges_are_the_shortest() -> None:
    mask = np.zeros((60, 90), np.bool_)
    for top, left in ((5, 5), (5, 40), (40, 40), (41, 80)):
        mask[top : top + 10, left : left + 10] = True
    [drawn] = read_yolo(written(given_masks(mask), "yolo"), mask.shape)
    # Between the squares are 25, 25 and 30 pixels.
    assert (drawn & ~mask).sum() == 80


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("pixels_per_part", [1, 10**9])
def test_many_objects_with_holes_and_islands_keep_their_numbers(
    kind: ResponseFormat, pixels_per_part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.messages.pieces.PIXELS_PER_PART", pixels_per_part)
    size = (90, 130)
    expected = discs_and_rings(size)
    nothing = np.zeros(size, np.bool_)
    data = written(given_masks(nothing, *expected, nothing), kind)
    found = READERS[kind](data, size)
    assert len(found) == len(expected)
    for mask, right in zip(found, expected, strict=True):
        assert (mask == right).all() if kind != "yolo" else iou(mask, right) > 0.98


@pytest.mark.parametrize("kind", ["coco", "coco_rle"])
def test_cocos_annotations_have_the_masks_own_area_and_box(kind: ResponseFormat) -> None:
    expected = discs_and_rings((90, 130))
    records = json.loads(written(given_masks(np.zeros((90, 130), np.bool_), *expected), kind))["annotations"]
    # From 1, or COCOeval would take a match for none; the empty mask has no annotation.
    assert [record["id"] for record in records] == [2, 3, 4, 5]
    for record, mask in zip(records, expected, strict=True):
        assert record["area"] == mask.sum()
        assert record["bbox"] == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()
        assert (record["iscrowd"], record["image_id"], record["category_id"]) == (0, 1, 1)


POLYGONS = [kind for kind in READERS if "tolerance" in TRAITS[kind].options]


@pytest.mark.parametrize("kind", POLYGONS)
@many
@given(masks(), st.sampled_from([1, 3, 40]))
def test_polygons_of_tools_lose_no_more_than_they_may(kind: ResponseFormat, mask: Mask, tolerance: float) -> None:
    found = READERS[kind](written(given_masks(mask), kind, tolerance=tolerance), mask.shape)
    # A slanting edge through the centre of a pixel is drawn by one library and left out by another.
    slack = 0.02 + 4 / max(mask.sum(), 1)
    if mask.any() and kind != "yolo":
        assert iou(found[0], mask) >= 1 - 0.01 * tolerance - slack


@pytest.mark.parametrize("kind", POLYGONS)
def test_a_tolerance_leaves_out_corners(kind: ResponseFormat) -> None:
    found = given_masks(discs_and_rings((400, 500))[1])
    exact, simplified = (written(found, kind, tolerance=tolerance) for tolerance in (0, 2))
    assert len(simplified) < len(exact) / 2


def test_davis_has_its_palette_and_the_lower_number_on_top() -> None:
    whole, part, nothing = np.ones((20, 30), np.bool_), np.zeros((20, 30), np.bool_), np.zeros((20, 30), np.bool_)
    part[5:10, 5:10] = True
    image = Image.open(io.BytesIO(written(given_masks(nothing, part, whole), "davis")))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), np.where(part, 2, 3))
    assert bytes(image.getpalette() or [])[:12] == davis_palette()[:12]
    reverse = Image.open(io.BytesIO(written(given_masks(whole, part), "davis")))
    assert (np.asarray(reverse) == 1).all()


def test_napari_labels_have_16_bits_and_the_higher_score_on_top() -> None:
    whole, part = np.ones((20, 30), np.bool_), np.zeros((20, 30), np.bool_)
    part[5:10, 5:10] = True
    for scores, top in (([0.5, 0.9], 2), ([0.9, 0.5], 1)):
        image = Image.open(io.BytesIO(written(GivenMasks(np.stack([whole, part]), scores), "napari")))
        labels = np.asarray(image)
        assert labels.dtype == np.uint16
        assert image.format == "TIFF"
        np.testing.assert_array_equal(labels, np.where(part, top, 1))


# ---- which masks, which names


@pytest.mark.parametrize("kind", READERS)
def test_a_tool_gets_the_best_mask_of_each_object_or_the_one_that_is_asked_for(
    kind: ResponseFormat, segmentation_of: BuildSegmentation
) -> None:
    # Of as many pixels as logits, and blurred: noise of single pixels is no mask that bridges could join.
    segmentation = segmentation_of((24, 31), objects=3, has_object_axis=True)
    masks = segmentation.masks()
    everything = READERS[kind](written(segmentation, kind), (24, 31))
    single = READERS[kind](written(segmentation, kind, mask_index=5), (24, 31))
    assert (len(everything), len(single)) == (3, 1)
    for found, right in zip([*everything, *single], [*masks[:, 0], masks[1, 2]], strict=True):
        assert (found == right).all() or (kind == "yolo" and (found >= right).all())


@pytest.mark.parametrize("kind", TOOLS)
def test_nothing_found_is_a_file_too(kind: ResponseFormat) -> None:
    data = written(GivenMasks(np.zeros((0, 8, 9), np.bool_), []), kind)
    if kind in READERS:
        assert READERS[kind](data, (8, 9)) == []
    else:
        assert not np.asarray(Image.open(io.BytesIO(data))).any()


@pytest.mark.parametrize("kind", [kind for kind in TOOLS if "label" in TRAITS[kind].options])
def test_names_are_written_as_they_are_whatever_they_hold(kind: ResponseFormat) -> None:
    names = {"label": f"label {HOSTILE}", "file_name": f"file {HOSTILE}"}
    data = written(given_masks(np.ones((3, 4), np.bool_)), kind, **names)
    if kind == "cvat":
        image = ET.fromstring(data)[1]
        assert (image[0].attrib["label"], image.attrib["name"]) == (names["label"], names["file_name"])
        return
    text = json.dumps(json.loads(data), ensure_ascii=False)
    assert json.dumps(names["label"], ensure_ascii=False) in text
    assert json.dumps(names["file_name"], ensure_ascii=False) in text or kind == "qupath"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": ""}, "label: must not be empty"),
        ({"label": "a" * 201}, "label: has 201 characters"),
        ({"label": "a\x00b"}, r"label: holds U\+0000"),
        ({"label": "a\ud800"}, r"label: holds U\+D800"),
        ({"file_name": "a\nb"}, r"file_name: holds U\+000A"),
        ({"file_name": "￿"}, r"file_name: holds U\+FFFF"),
        ({"response_format": "rle", "label": "a"}, "label: is for response_format coco, .*, not for rle"),
        ({"response_format": "npz", "file_name": "a"}, "file_name: is for"),
        ({"response_format": "cvat", "tolerance": 1.0}, "tolerance: is for response_format polygons, coco, "),
        ({"return_logits": True}, "return_logits: coco holds no logits"),
    ],
)
def test_an_option_that_cannot_be_written_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{message}"):
        AnswerFormat(**{"response_format": "coco", **options})


def test_the_files_own_name_is_written_unless_another_is_asked_for() -> None:
    assert AnswerFormat("coco").for_upload("C:\\pictures\\dog 1.jpg").shown_file_name == "dog 1.jpg"
    assert AnswerFormat("coco", file_name="a/b.png").for_upload("dog.jpg").shown_file_name == "a/b.png"
    assert AnswerFormat("coco").for_upload(None).shown_file_name == "image"
    assert AnswerFormat("rle").for_upload("dog.jpg") == AnswerFormat("rle")
    assert name_of_upload("../../etc/a\x00\ud800b\n") == "ab"
    assert name_of_upload("/") is None
    assert name_of_upload("x" * 300 + ".png") == "x" * 196 + ".png"


def test_more_objects_than_a_format_can_number_are_refused(segmentation_of: BuildSegmentation) -> None:
    many_objects = GivenMasks(np.ones((256, 2, 2), np.bool_), [0.5] * 256)
    with pytest.raises(TooLarge, match=r"^response_format: davis can number 255 objects, and there are 256"):
        written(many_objects, "davis")
    assert written(many_objects, "davis", mask_index=3)
    assert written(many_objects, "napari")
