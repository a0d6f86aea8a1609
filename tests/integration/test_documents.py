"""The documents are true: their Bash and Python blocks, found by name, do what the text says."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from harness.images import iou
from tests.documents import ROOT, code_of
from tests.integration.conftest import Service

ADDRESS = "http://127.0.0.1:8000"
"""What the documents call the service."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the project's root to the documents' commands."""
    (tmp_path / "deployments").symlink_to(ROOT / "deployments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def truth() -> NDArray[np.bool_]:
    """The pear of the example image."""
    return np.array(Image.open(ROOT / "deployments" / "model" / "demo" / "example_truth.png")) > 0


def run_bash(code: str, service: Service, folder: Path) -> None:
    subprocess.run(["bash", "-euc", code.replace(ADDRESS, service.url)], cwd=folder, check=True)


def run_python(code: str, service: Service) -> dict[str, Any]:
    """Runs a block and returns its names."""
    namespace: dict[str, Any] = {}
    exec(code.replace(ADDRESS, service.url), namespace)
    return namespace


def test_the_first_example_finds_the_clicked_object(service: Service, folder: Path, truth: NDArray[np.bool_]) -> None:
    run_bash(code_of("first-mask"), service, folder)
    names = run_python(code_of("draw-mask"), service)
    assert iou(names["masks"][0] > 0, truth) > 0.8
    assert os.path.getsize(folder / "mask.png") > 0


@pytest.mark.usefixtures("folder")
def test_five_lines_of_python_find_it_too(
    service: Service, truth: NDArray[np.bool_], capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_python(code_of("five-lines"), service)
    assert names["pear"].masks.shape == (3, 480, 640)
    assert iou(names["pear"].masks[0], truth) > 0.8
    assert capsys.readouterr().out.startswith("[")


def test_the_example_by_id_gives_the_same_masks_as_with_the_upload(service: Service, folder: Path) -> None:
    run_bash(code_of("prompt-by-id"), service, folder)
    by_id = (folder / "answer.json").read_bytes()
    with service.client() as client, (folder / "deployments/model/demo/example.png").open("rb") as image:
        fields = {"point_coords": "[[220,240]]", "point_labels": "[1]"}
        assert client.post("/segment-anything-2", data=fields, files={"image": image}).content == by_id


def test_three_objects_in_a_compact_format(service: Service, folder: Path, truth: NDArray[np.bool_]) -> None:
    run_bash(code_of("three-objects"), service, folder)
    objects = json.loads((folder / "objects.json").read_text())["masks"]
    assert [len(masks) for masks in objects] == [3, 3, 3]
    assert iou(coco.decode(objects[0][0]["segmentation"]), truth) > 0.8


def test_the_example_in_json_finds_the_clicked_object(service: Service, folder: Path, truth: NDArray[np.bool_]) -> None:
    run_bash(code_of("json-body"), service, folder)
    best = json.loads((folder / "pear.json").read_text())["masks"][0]
    assert iou(coco.decode(best["segmentation"]), truth) > 0.8


def test_a_dataset_of_coco(service: Service, folder: Path, truth: NDArray[np.bool_]) -> None:
    run_bash(code_of("coco-dataset"), service, folder)
    dataset = COCO(str(folder / "fruit.json"))
    assert [one["file_name"] for one in dataset.loadImgs(dataset.getImgIds())] == ["example.png"]
    assert [one["name"] for one in dataset.loadCats(dataset.getCatIds())] == ["fruit"]
    pear, _ = dataset.loadAnns(dataset.getAnnIds())
    assert iou(dataset.annToMask(pear), truth) > 0.8


def test_everything_finds_the_objects_of_the_picture(service: Service, folder: Path, truth: NDArray[np.bool_]) -> None:
    run_bash(code_of("everything"), service, folder)
    records = json.loads((folder / "everything.json").read_text())["masks"]
    # Seventeen, as docs/api.md says, give or take what another processor rounds across a threshold.
    assert 14 <= len(records) <= 20
    assert max(iou(coco.decode(record["segmentation"]), truth) for record in records) > 0.8


@pytest.mark.usefixtures("folder")
def test_the_client_example_runs(service: Service) -> None:
    names = run_python(code_of("client"), service)
    assert names["pear"].masks.shape == names["finer"].masks.shape == (3, 480, 640)
    assert names["three"].masks.shape == (3, 3, 480, 640)
    assert len(names["everything"].masks) > 3


@pytest.mark.usefixtures("folder")
def test_the_handle_example_runs(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_python(code_of("handle"), service)
    assert names["mask"].dtype == np.bool_
    assert names["better"].scores.shape == (3,)
    assert names["other"].image_id == names["segmentation"].image_id
    assert json.loads(names["rle"])["image_id"] == names["other"].image_id
    assert capsys.readouterr().out.startswith("[")


def test_the_first_example_of_a_video_follows_the_clicked_object(
    service: Service, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Random weights: what is found is of no account.
    run_bash(code_of("follow-pear"), service, folder)
    names = run_python(code_of("read-frames"), service)
    assert (names["head"]["width"], names["head"]["height"], names["head"]["num_frames"]) == (480, 270, 72)
    assert [frame["frame_index"] for frame in names["frames"]] == [0, 1, 2]
    assert names["last"] == {"done": True, "frames": 3}
    assert names["mask"].shape == (270, 480)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_two_objects_of_a_kept_video_are_followed_and_a_frame_of_it_is_an_image(service: Service, folder: Path) -> None:
    run_bash(code_of("two-in-a-video"), service, folder)
    head, *frames, last = [json.loads(line) for line in (folder / "two.ndjson").read_text().splitlines()]
    assert head["objects"] == [1, 2]
    assert [[one["object_id"] for one in frame["objects"]] for frame in frames] == [[1], [1, 2], [1, 2]]
    assert last == {"done": True, "frames": 3}
    run_bash(code_of("click-on-frame"), service, folder)
    with Image.open(folder / "frame.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (480, 270))
    clicked = json.loads((folder / "clicked.json").read_text())
    assert clicked["size"] == [270, 480]
    assert len(clicked["masks"]) == 3


@pytest.mark.usefixtures("folder")
def test_the_client_follows_the_mask_of_a_click(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_python(code_of("client-video"), service)
    assert names["first"].shape == (270, 480, 3)
    # Random weights: the mask is made of specks, of which a smaller one is left over.
    assert 0 < names["areas"][0] <= 1.1 * names["click"].masks[0].sum()
    assert len(names["areas"]) == len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.usefixtures("folder")
def test_the_handle_example_of_a_video_runs(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_python(code_of("handle-video"), service)
    assert set(names["areas"]) == {(0, 1), (1, 1), (1, 2), (2, 1), (2, 2)}
    assert capsys.readouterr().out.startswith("{")


def test_every_route_and_every_field_is_in_the_document_of_the_interface(service: Service) -> None:
    document = (ROOT / "docs" / "api.md").read_text()
    with service.client() as client:
        interface = client.get("/openapi.json").json()
    fields = {
        field
        for name, schema in interface["components"]["schemas"].items()
        if name.startswith("Body_")
        for field in schema["properties"]
    }
    routes = {f"{method.upper()} {path}" for path, methods in interface["paths"].items() for method in methods}
    assert {"image", "point_coords", "points_per_side"} <= fields
    assert [field for field in sorted(fields) if f"| `{field}` |" not in document] == []
    assert [route for route in sorted(routes) if f"`{route}`" not in document] == []
