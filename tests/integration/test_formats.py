"""Response formats, many objects and segment everything, over real HTTP and on the handle."""

import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, get_args

import httpx
import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from deployments.errors import InvalidRequest, TooLarge
from deployments.messages.answer_format import RESPONSE_FORMATS, TRAITS, AnswerFormat, AutomaticFormat
from deployments.messages.everything import AutomaticPrompt
from deployments.messages.prompt import Prompt
from harness.images import encoded, iou, picture
from harness.reference import parse_answer
from tests.documents import ROOT
from tests.integration.conftest import DEMO, NOT_CACHED, Service
from tests.integration.test_ids import UNKNOWN, assert_not_cached

ROUTE = "/segment-anything-2"
IMAGE = (ROOT / "deployments" / "model" / "demo" / "example.png").read_bytes()
SIZE = Image.open(io.BytesIO(IMAGE)).size[::-1]
Fields = dict[str, Any]

POINT: Fields = {"point_coords": "[[220,240]]", "point_labels": "[1]"}
BOXES: Fields = {"box": "[[100,60,250,290],[10,10,90,90],[200,100,380,280]]"}
LENIENT: Fields = {"points_per_side": "4", "pred_iou_thresh": "0.5", "stability_score_thresh": "0.7"}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def post(client: httpx.Client, path: str = ROUTE, image: bytes | None = IMAGE, **fields: str) -> httpx.Response:
    parts = [(name, (None, text.encode())) for name, text in fields.items()]
    return client.post(path, files=[*parts, *([("image", ("image.png", image))] if image is not None else [])])


def default(client: httpx.Client, **fields: Any) -> Any:
    """The default answer's 0/1 masks, scores and logits."""
    return parse_answer(post(client, **fields, return_logits="false").content)


def drawn(geometry: dict[str, Any]) -> Any:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return shapely.contains_xy(shapely.geometry.shape(geometry), x, y)


@pytest.mark.parametrize("prompt", [POINT, BOXES], ids=["one object", "three objects"])
def test_each_format_holds_the_default_answers_masks(prompt: Fields, client: httpx.Client) -> None:
    expected = default(client, **prompt)
    flat = expected.masks.reshape(-1, *SIZE)
    answers = {kind: post(client, **prompt, response_format=kind) for kind in ("rle", "polygons", "png", "npz")}
    for answer in answers.values():
        assert answer.status_code == 200, answer.text[:300]
        assert len(answer.headers["x-image-id"]) == 64
        assert "encode" in answer.headers["server-timing"]
    documents = {kind: answers[kind].json() for kind in ("rle", "polygons")}
    for document in documents.values():
        assert document["image_id"] == answers["png"].headers["x-image-id"]
        assert document["model_id"] == DEMO
        assert document["size"] == list(SIZE)
        nested = np.array([len(one) for one in document["masks"]]) if prompt is BOXES else len(document["masks"])
        assert np.all(nested == 3)
    records = {
        kind: document["masks"] if prompt is POINT else list(chain(*document["masks"]))
        for kind, document in documents.items()
    }
    for index, mask in enumerate(flat):
        np.testing.assert_array_equal(coco.decode(records["rle"][index]["segmentation"]), mask)
        assert mask.sum() == 0 or iou(drawn(records["polygons"][index]["segmentation"]), mask) >= 0.99
        assert records["rle"][index]["score"] == pytest.approx(float(expected.scores.flat[index]), abs=1e-4)
    with np.load(io.BytesIO(answers["npz"].content), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["masks"], expected.masks)
        np.testing.assert_allclose(archive["scores"], expected.scores, atol=1e-4)
        assert "logits" not in archive
    assert answers["npz"].headers["content-type"] == "application/zip"
    assert answers["png"].headers["content-type"] == "image/png"
    best = int(np.argmax(expected.scores))
    assert int(answers["png"].headers["x-mask-index"]) == best
    assert float(answers["png"].headers["x-score"]) == pytest.approx(float(expected.scores.flat[best]), abs=1e-4)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answers["png"].content))) > 0, flat[best] > 0)


def test_logits_come_only_where_they_are_asked_for(client: httpx.Client) -> None:
    expected = default(client, **POINT).logits
    for given, there in (("true", True), ("false", False), ("", False), ("1", True)):
        archive = np.load(io.BytesIO(post(client, **POINT, response_format="npz", return_logits=given).content))
        assert ("logits" in archive) == there, given
        if there:
            np.testing.assert_allclose(archive["logits"], expected, atol=1e-3)
    record = post(client, **POINT, response_format="rle", return_logits="true").json()["masks"][0]
    refined = post(client, **POINT, mask_input=json.dumps(record["logits"]), response_format="npz")
    assert refined.status_code == 200, refined.text[:300]


@pytest.mark.parametrize("response_format", ["json", "rle"])
def test_the_proxy_that_haproxy_falls_back_to_gives_the_same_answer(
    response_format: str, service: Service, client: httpx.Client
) -> None:
    # So it does while a changed application is being built. That proxy is another process: what is sent is pickled.
    fields = {"point_coords": "[[80, 60]]", "point_labels": "[1]", "response_format": response_format}
    image = encoded(picture(160, 120, seed=5))
    with httpx.Client(base_url=service.fallback_url, timeout=120) as fallback:
        answers = [one.post("/segment-anything-2", data=fields, files={"image": image}) for one in (client, fallback)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content


def test_a_format_by_image_id_and_in_every_spelling_of_the_route(client: httpx.Client) -> None:
    uploaded = post(client, **POINT, response_format="rle")
    by_id = post(client, f"{ROUTE}/", None, **POINT, response_format="rle", image_id=uploaded.headers["x-image-id"])
    assert by_id.json() == uploaded.json()
    assert post(client, **POINT, response_format="").content == post(client, **POINT).content


def test_polygons_are_packed_for_who_wants_them_packed(client: httpx.Client) -> None:
    response = post(client, **POINT, response_format="polygons", tolerance="0")
    assert response.headers["content-encoding"] in ("gzip", "zstd")
    exact = response.json()["masks"][0]
    assert shapely.geometry.shape(exact["segmentation"]).area == exact["area"]
    assert len(post(client, **POINT, response_format="polygons", tolerance="4").content) < len(response.content)


def test_many_objects_are_answered_in_a_compact_format_and_refused_in_the_default_one(
    client: httpx.Client,
) -> None:
    image = encoded(picture(1600, 1200, seed=130_001), "JPEG")
    boxes = str([[index, index, 100 + index, 200 + index] for index in range(30)])
    assert post(client, image=image, box=boxes).status_code == 413
    answer = post(client, image=image, box=boxes, response_format="rle")
    assert answer.status_code == 200, answer.text[:300]
    masks = answer.json()["masks"]
    assert [len(masks), len(masks[0])] == [30, 3]
    one = post(client, image=image, box="[[22,22,122,222]]", response_format="rle").json()["masks"][0]
    for record, alone in zip(masks[22], one, strict=True):
        assert iou(coco.decode(record["segmentation"]), coco.decode(alone["segmentation"])) > 0.999 or not alone["area"]


@pytest.mark.parametrize("path", [ROUTE, f"{ROUTE}/auto"])
def test_files_of_tools_hold_the_masks_of_each_object(path: str, client: httpx.Client) -> None:
    fields: Fields = BOXES if path == ROUTE else LENIENT
    records = post(client, path, **fields, response_format="rle").json()["masks"]
    best = [record[0] if path == ROUTE else record for record in records]
    for kind in get_args(AutomaticFormat):
        if not TRAITS[kind].one_mask_an_object or TRAITS[kind].is_georeferenced:
            continue
        answer = post(client, path, **fields, response_format=kind)
        assert answer.status_code == 200, (kind, answer.text[:300])
        assert answer.headers["content-type"].startswith(TRAITS[kind].media_type)
        assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''image{TRAITS[kind].suffix}"
    names: Fields = {"label": '<"thing" & é>', "file_name": "a/photo.jpg"}
    dataset = COCO()
    dataset.dataset = post(client, path, **fields, **names, response_format="coco").json()
    dataset.createIndex()
    assert dataset.dataset["images"] == [{"id": 1, "width": SIZE[1], "height": SIZE[0], "file_name": "a/photo.jpg"}]
    assert dataset.cats[1]["name"] == names["label"]
    annotated = dataset.loadAnns(dataset.getAnnIds())
    assert len(annotated) == sum(record["area"] > 0 for record in best)
    for annotation in annotated:
        expected = coco.decode(best[annotation["id"] - 1]["segmentation"])
        np.testing.assert_array_equal(dataset.annToMask(annotation), expected)
    xml = ET.fromstring(post(client, path, **fields, **names, response_format="cvat").content)
    assert [one.attrib["label"] for one in xml.iter("mask")] == [names["label"]] * len(annotated)


def test_a_tool_gets_the_one_mask_that_is_asked_for(client: httpx.Client) -> None:
    expected = post(client, **BOXES, response_format="rle").json()["masks"][1][2]
    [annotation] = post(client, **BOXES, response_format="coco_rle", mask_index="5").json()["annotations"]
    assert annotation["segmentation"] == expected["segmentation"]


BAD = {
    "a label for rle": (400, "label: ", {"response_format": "rle", "label": "a"}),
    "a label with a control character": (400, "label: ", {"response_format": "cvat", "label": "a\x01"}),
    "a file's name that is too long": (400, "file_name: ", {"response_format": "coco", "file_name": "a" * 201}),
    "an index beyond the masks of a tool": (400, "mask_index: ", {"response_format": "coco", "mask_index": "3"}),
    "logits for a tool": (400, "return_logits: ", {"response_format": "cvat", "return_logits": "true"}),
    "an unknown format": (422, "response_format", {"response_format": "xml"}),
    "two formats": (422, "response_format", {"response_format": "rle,png"}),
    "a tolerance for rle": (400, "tolerance: ", {"response_format": "rle", "tolerance": "1"}),
    "a negative tolerance": (400, "tolerance: ", {"response_format": "polygons", "tolerance": "-1"}),
    "a tolerance of NaN": (400, "tolerance: ", {"response_format": "polygons", "tolerance": "nan"}),
    "an endless tolerance": (400, "tolerance: ", {"response_format": "polygons", "tolerance": "1e400"}),
    "a tolerance in words": (422, "tolerance", {"response_format": "polygons", "tolerance": "one"}),
    "an index for json": (400, "mask_index: ", {"mask_index": "0"}),
    "an index beyond the masks": (400, "mask_index: ", {"response_format": "png", "mask_index": "3"}),
    "a negative index": (400, "mask_index: ", {"response_format": "png", "mask_index": "-1"}),
    "half an index": (422, "mask_index", {"response_format": "png", "mask_index": "0.5"}),
    "logits in a png": (400, "return_logits: ", {"response_format": "png", "return_logits": "true"}),
}


@pytest.mark.parametrize(("status", "named", "fields"), BAD.values(), ids=BAD)
def test_a_bad_option_is_refused(status: int, named: str, fields: Fields, client: httpx.Client) -> None:
    assert_refused(post(client, **POINT, **fields), status, named)


def assert_refused(response: httpx.Response, status: int, named: str) -> None:
    assert response.status_code == status, response.text[:300]
    detail = response.json()["detail"]
    if status == 422:
        assert [fault["loc"] for fault in detail] == [["body", named]]
    else:
        assert detail["msg"].startswith(named)


# ---- everything


def test_everything_in_each_format(client: httpx.Client) -> None:
    path = f"{ROUTE}/auto"
    answers = {kind: post(client, path, **LENIENT, response_format=kind) for kind in ("rle", "polygons", "png", "npz")}
    for answer in answers.values():
        assert answer.status_code == 200, answer.text[:300]
    document = answers["rle"].json()
    assert document["size"] == list(SIZE)
    archive = np.load(io.BytesIO(answers["npz"].content), allow_pickle=False)
    assert len(document["masks"]) == len(archive["masks"]) > 2
    assert list(document["masks"][0]) == [
        "segmentation",
        "predicted_iou",
        "stability_score",
        "point_coords",
        "crop_box",
        "area",
        "bbox",
    ]
    for record, polygons, mask in zip(
        document["masks"], answers["polygons"].json()["masks"], archive["masks"], strict=True
    ):
        np.testing.assert_array_equal(coco.decode(record["segmentation"]), mask)
        assert iou(drawn(polygons["segmentation"]), mask) >= 0.99
        assert record["area"] == mask.sum() > 0
        assert record["predicted_iou"] > 0.5
        assert record["stability_score"] >= 0.7
    labels = np.asarray(Image.open(io.BytesIO(answers["png"].content)))
    np.testing.assert_array_equal(labels > 0, archive["masks"].any(axis=0))
    by_id = post(client, path, None, **LENIENT, image_id=answers["rle"].headers["x-image-id"])
    assert by_id.json() == document


def test_crops_need_the_image_and_find_more(client: httpx.Client) -> None:
    path = f"{ROUTE}/auto"
    fields: Fields = {**LENIENT, "points_per_side": "3"}
    image = encoded(picture(200, 150, seed=130_002))
    plain = post(client, path, image, **fields)
    crops = post(client, path, image, **fields, crop_n_layers="1")
    assert crops.status_code == 200, crops.text[:300]
    boxes = {tuple(record["crop_box"]) for record in crops.json()["masks"]}
    assert boxes - {(0, 0, 200, 150)}
    assert {tuple(record["crop_box"]) for record in plain.json()["masks"]} == {(0, 0, 200, 150)}
    response = post(client, path, None, **fields, crop_n_layers="1", image_id=crops.headers["x-image-id"])
    assert_refused(response, 400, "crop_n_layers: ")


def test_nothing_good_enough_is_an_empty_list(client: httpx.Client) -> None:
    strict: Fields = {"points_per_side": "2", "pred_iou_thresh": "1", "stability_score_thresh": "1"}
    assert post(client, f"{ROUTE}/auto", **strict).json()["masks"] == []
    assert np.load(io.BytesIO(post(client, f"{ROUTE}/auto", **strict, response_format="npz").content))[
        "masks"
    ].shape == (0, *SIZE)
    assert not np.asarray(
        Image.open(io.BytesIO(post(client, f"{ROUTE}/auto", **strict, response_format="png").content))
    ).any()


BAD_AUTO = {
    "no points": (422, "points_per_side", {"points_per_side": "0"}),
    "words": (422, "points_per_side", {"points_per_side": "many"}),
    "half a point": (422, "points_per_side", {"points_per_side": "1.5"}),
    "a threshold beyond 1": (422, "pred_iou_thresh", {"pred_iou_thresh": "1.5"}),
    "a threshold of NaN": (422, "stability_score_thresh", {"stability_score_thresh": "nan"}),
    "too many layers": (422, "crop_n_layers", {"crop_n_layers": "9"}),
    "too many points": (413, "points_per_side: ", {"points_per_side": "17"}),
    "too many points in all crops": (413, "points_per_side: ", {"points_per_side": "8", "crop_n_layers": "1"}),
    "the default grid, where the operator allows less": (413, "points_per_side: ", {}),
    "no points left for crops": (
        400,
        "crop_n_points_downscale_factor: ",
        {"points_per_side": "2", "crop_n_layers": "1", "crop_n_points_downscale_factor": "4"},
    ),
    "the default format": (422, "response_format", {"response_format": "json"}),
    "logits in a png": (400, "return_logits: ", {"response_format": "png", "return_logits": "true"}),
    "an unknown model": (400, "model_id: ", {"model_id": "facebook/sam3"}),
}


@pytest.mark.parametrize(("status", "named", "fields"), BAD_AUTO.values(), ids=BAD_AUTO)
def test_bad_options_for_everything_are_refused(status: int, named: str, fields: Fields, client: httpx.Client) -> None:
    assert_refused(post(client, f"{ROUTE}/auto", **fields), status, named)


def test_everything_needs_an_image_or_an_id_that_is_remembered(client: httpx.Client) -> None:
    path = f"{ROUTE}/auto"
    few: Fields = {"points_per_side": "2"}
    assert_refused(post(client, path, None, **few), 422, "image")
    assert_refused(post(client, path, b"not an image", **few), 400, "image: ")
    assert_refused(post(client, path, IMAGE, **few, image_id=UNKNOWN), 400, "image_id: ")
    assert_not_cached(post(client, path, None, **few, image_id=UNKNOWN))
    assert_not_cached(post(client, path, None, **few, image_id=UNKNOWN, model_id=NOT_CACHED))


# ---- the handle


def test_the_handle_can_do_the_same(client: httpx.Client) -> None:
    from ray import serve

    handle = serve.get_app_handle("segment-anything-2")
    prompt = AutomaticPrompt(points_per_side=4, pred_iou_thresh=0.5, stability_score_thresh=0.7)
    everything = handle.auto.remote(IMAGE, prompt).result()
    document = post(client, f"{ROUTE}/auto", **LENIENT).json()
    assert everything.num_masks == len(document["masks"])
    assert json.loads(handle.encode.remote(everything, AnswerFormat("rle")).result()) == document
    segmentation = handle.segment.remote(IMAGE, Prompt([[220, 240]], [1])).result()
    for kind in (kind for kind in RESPONSE_FORMATS if not TRAITS[kind].is_georeferenced):
        file_name = "image.png" if "file_name" in TRAITS[kind].options else None
        form = AnswerFormat(kind, return_logits=kind == "json", file_name=file_name)
        assert handle.encode.remote(segmentation, form).result() == post(client, **POINT, response_format=kind).content
    calls: list[tuple[Callable[[], Any], type[Exception]]] = [
        (lambda: handle.auto.remote(IMAGE, Prompt()), InvalidRequest),
        (lambda: handle.auto.remote(IMAGE, AutomaticPrompt(points_per_side=200)), TooLarge),
        (lambda: handle.encode.remote(everything, AnswerFormat("json")), InvalidRequest),
        (lambda: handle.encode.remote(segmentation, AnswerFormat("png", mask_index=3)), InvalidRequest),
        (lambda: handle.encode.remote(segmentation, AnswerFormat("geotiff")), InvalidRequest),
        (lambda: handle.encode.remote(segmentation, AnswerFormat("polygons", coordinates="map")), InvalidRequest),
    ]
    for call, error in calls:
        with pytest.raises(error):
            call().result()
