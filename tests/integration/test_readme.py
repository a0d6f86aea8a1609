"""The README is true: its code blocks run, its pictures exist, its tables list every setting."""

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pydantic import BaseModel

from deployments import settings
from deployments.messages.everything import AutomaticPrompt
from harness.images import iou
from tests.integration.conftest import Service

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [code for name, code in BLOCKS if name == language]


def default_text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, tuple):
        return "`[" + ", ".join(str(getattr(item, "model_id", item)) for item in value) + "]`"
    return "below" if isinstance(value, BaseModel) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def range_text(field: Any) -> str:
    bounds = {
        kind: getattr(item, kind) for item in field.metadata for kind in ("ge", "gt", "le") if hasattr(item, kind)
    }
    low = f"≥ {bounds['ge']:g}" if "ge" in bounds else f"> {bounds['gt']:g}" if "gt" in bounds else ""
    return ", ".join(filter(None, [low, f"≤ {bounds['le']:g}" if "le" in bounds else ""]))


def settings_table(names: list[str]) -> str:
    """The Markdown table of settings classes; run `python -m tests.integration.test_readme` to write it."""
    rows = ["| setting | default | range | meaning |", "|---|---|---|---|"]
    prefixes = {"ServiceSettings": "", "ModelSettings": "models[].", "Limits": "limits."}
    for name in names:
        for field_name, field in getattr(settings, name).model_fields.items():
            prefix = prefixes.get(name, "Sam2Model: " if name == "Sam2ModelConfig" else "RequestParser: ")
            default = "required" if field.is_required() else default_text(field.default)
            rows.append(f"| `{prefix}{field_name}` | {default} | {range_text(field)} | {field.description} |")
    return "\n".join(rows)


def options_table() -> str:
    """The Markdown table of the options for segmenting everything."""
    rows = ["| field | default | range | meaning |", "|---|---|---|---|"]
    for option in dataclasses.fields(AutomaticPrompt):
        low, high = option.metadata["range"]
        meaning = option.metadata["description"]
        rows.append(f"| `{option.name}` | `{option.default:.4g}` | {low:g} to {high:g} | {meaning} |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """The README with its tables of settings and options as the code has them."""

    def table(match: re.Match[str]) -> str:
        rows = settings_table(match[3].split()) if match[2] == "settings" else options_table()
        return f"{match[1]}\n{rows}\n\n"

    return re.sub(r"(<!-- (settings|options): ([\w ]+) -->\n)(?:\n?\|[^\n]*)*\n+", table, text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the project's root to the README's commands."""
    (tmp_path / "deployments").symlink_to(ROOT / "deployments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_in_bash(code: str, service: Service, folder: Path) -> None:
    subprocess.run(["bash", "-euc", code.replace("http://127.0.0.1:8000", service.url)], cwd=folder, check=True)


def test_every_setting_is_listed_with_default_range_and_meaning() -> None:
    assert with_tables(README) == README


def test_pictures_and_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^make ([a-z]+)", "".join(blocks("sh")), re.MULTILINE))
    assert {"serve", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_first_example_finds_the_clicked_object(service: Service, folder: Path) -> None:
    run_in_bash(blocks("bash")[0], service, folder)
    namespace: dict[str, Any] = {}
    exec(blocks("python")[0], namespace)
    truth = np.array(Image.open(ROOT / "deployments" / "model" / "demo" / "example_truth.png")) > 0
    assert iou(namespace["masks"][0] > 0, truth) > 0.8
    assert os.path.getsize(folder / "mask.png") > 0


def test_the_example_by_id_gives_the_same_masks_as_with_the_upload(service: Service, folder: Path) -> None:
    run_in_bash(blocks("bash")[1], service, folder)
    by_id = (folder / "answer.json").read_bytes()
    with service.client() as client, (folder / "deployments/model/demo/example.png").open("rb") as image:
        fields = {"point_coords": "[[220,240]]", "point_labels": "[1]"}
        assert client.post("/segment-anything-2", data=fields, files={"image": image}).content == by_id


def test_three_objects_in_a_compact_format(service: Service, folder: Path) -> None:
    run_in_bash(blocks("bash")[2], service, folder)
    objects = json.loads((folder / "objects.json").read_text())["masks"]
    assert [len(masks) for masks in objects] == [3, 3, 3]
    truth = np.array(Image.open(ROOT / "deployments" / "model" / "demo" / "example_truth.png")) > 0
    assert iou(coco.decode(objects[0][0]["segmentation"]), truth) > 0.8


def test_everything_finds_the_objects_of_the_picture(service: Service, folder: Path) -> None:
    run_in_bash(blocks("bash")[3], service, folder)
    records = json.loads((folder / "everything.json").read_text())["masks"]
    # Seventeen, as README says, give or take what another processor rounds across a threshold.
    assert 14 <= len(records) <= 20
    truth = np.array(Image.open(ROOT / "deployments" / "model" / "demo" / "example_truth.png")) > 0
    assert max(iou(coco.decode(record["segmentation"]), truth) for record in records) > 0.8


def test_the_client_example_runs(service: Service, folder: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(blocks("python")[1].replace("http://127.0.0.1:8000", service.url), namespace)
    assert namespace["pear"].masks.shape == namespace["finer"].masks.shape == (3, 480, 640)
    assert namespace["three"].masks.shape == (3, 3, 480, 640)
    assert len(namespace["everything"].masks) > 3


def test_the_handle_example_runs(service: Service, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    exec(blocks("python")[2], namespace)
    assert namespace["mask"].dtype == np.bool_
    assert namespace["better"].scores.shape == (3,)
    assert namespace["other"].image_id == namespace["segmentation"].image_id
    assert json.loads(namespace["rle"])["image_id"] == namespace["other"].image_id
    assert capsys.readouterr().out.startswith("[")


if __name__ == "__main__":
    (ROOT / "README.md").write_text(with_tables(README))
