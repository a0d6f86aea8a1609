"""Reads the files of write_files.py with the tools' own code, and compares their masks with those that went in.

It runs in an environment of the tools, without this project. Tools are imported without their `__init__`, which would
need their windows, networks and servers. Of ultralytics, which needs torch, one function is taken from its source.
"""

import ast
import importlib
import importlib.util
import json
import sys
import types
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

Mask = NDArray[np.bool_]
Size = tuple[int, int]


def bare(*packages: str) -> None:
    """Makes packages importable without running their `__init__`."""
    for name in packages:
        module = types.ModuleType(name)
        parent, _, last = name.rpartition(".")
        paths = sys.modules[parent].__path__ if parent else sys.path
        module.__path__ = [found for path in paths if (Path(found := str(Path(path) / last)) / "__init__.py").exists()]
        sys.modules[name] = module
        if parent:
            setattr(sys.modules[parent], last, module)


def function_of(module: str, name: str, **names: Any) -> Callable[..., Any]:
    """Takes one function out of a module's source."""
    package, *folders = module.split(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]).joinpath(*folders).with_suffix(".py")
    [found] = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == name]
    exec(compile(ast.Module([found], []), str(path), "exec"), names)
    function: Callable[..., Any] = names[name]
    return function


bare("cvat_sdk", "label_studio_sdk", "label_studio_sdk.converter", "labelme", "labelme.utils")
sys.modules["labelme"].__version__ = "6.3.1"  # type: ignore[attr-defined]
sys.modules["PyQt5"] = MagicMock()
for name, value in vars(importlib.import_module("labelme.utils.image")).items():
    setattr(sys.modules["labelme.utils"], name, value)
cvat = importlib.import_module("cvat_sdk.masks")
brush = importlib.import_module("label_studio_sdk.converter.brush")
label_file = importlib.import_module("labelme._label_file")
labelme_shape = importlib.import_module("labelme.utils.shape")
polygon2mask = function_of("ultralytics.data.utils", "polygon2mask", np=np, cv2=cv2)


# ---- readers: the masks of a file, in the order of the objects


def read_coco(path: Path, size: Size) -> list[Mask]:
    dataset = COCO(str(path))
    [image] = dataset.loadImgs(dataset.getImgIds())
    assert (image["height"], image["width"]) == size
    return [dataset.annToMask(one) > 0 for one in dataset.loadAnns(dataset.getAnnIds(iscrowd=False))]


def read_results(path: Path, size: Size) -> list[Mask]:
    results = COCO(str(path.with_name("coco_rle.json"))).loadRes(str(path))
    found = results.loadAnns(results.getAnnIds())
    masks = [results.annToMask(one) > 0 for one in found]
    assert [one["area"] for one in found] == [mask.sum() for mask in masks]
    return masks


def read_cvat(path: Path, size: Size) -> list[Mask]:
    [image] = ET.parse(path).getroot().findall("image")
    found = []
    for element in image.findall("mask"):
        left, top, width, height = (int(element.attrib[name]) for name in ("left", "top", "width", "height"))
        # As CVAT's import makes a shape's points of the element.
        points = [*map(int, element.attrib["rle"].split(",")), left, top, left + width - 1, top + height - 1]
        mask = cvat.decode_mask(points, image_width=size[1], image_height=size[0])
        assert points == cvat.encode_mask(mask)
        found.append(mask)
    return found


def read_brush(path: Path, size: Size) -> list[Mask]:
    [task] = json.loads(path.read_text())
    found = []
    for region in task["predictions"][0]["result"]:
        # The shape of an exported region, in which the value's keys are the region's own.
        layers = brush.decode_from_annotation("brush", [{**region, **region["value"]}])
        [layer] = layers.values()
        found.append(layer > 127)
    return found


def read_percent(path: Path, size: Size) -> list[Mask]:
    [task] = json.loads(path.read_text())
    scale = np.array([size[1], size[0]]) / 100

    def parts() -> Iterator[tuple[Any, Mask]]:
        for region in task["predictions"][0]["result"]:
            ring = (np.array(region["value"]["points"]) * scale).reshape(-1).tolist()
            yield region["id"].split("-")[0], coco_mask.decode(coco_mask.frPyObjects([ring], *size))[..., 0] > 0

    return joined(parts())


def read_labelme(path: Path, size: Size) -> list[Mask]:
    data = label_file.read_label_file(str(path))

    def parts() -> Iterator[tuple[Any, Mask]]:
        for index, shape in enumerate(data.shapes):
            _, instances = labelme_shape.shapes_to_label(size, [shape], {shape["label"]: 1})
            key = index if shape["group_id"] is None else shape["group_id"]
            yield key, instances > 0

    return joined(parts())


def read_yolo(path: Path, size: Size) -> list[Mask]:
    found = []
    for line in path.read_text().splitlines():
        segment = np.array(line.split()[1:], np.float32).reshape(-1, 2) * np.array([size[1], size[0]], np.float32)
        found.append(polygon2mask(size, [segment.reshape(-1)]) > 0)
    return found


def joined(parts: Iterator[tuple[Any, Mask]]) -> list[Mask]:
    found: dict[Any, Mask] = {}
    for key, mask in parts:
        found[key] = found[key] | mask if key in found else mask
    return list(found.values())


READERS: dict[str, Callable[[Path, Size], list[Mask]]] = {
    "coco.json": read_coco,
    "coco_rle.json": read_coco,
    "coco_results.json": read_results,
    "cvat.xml": read_cvat,
    "labelstudio.json": read_brush,
    "labelstudio_polygons.json": read_percent,
    "labelme.json": read_labelme,
    "labelme_polygons.json": read_labelme,
    "yolo.txt": read_yolo,
}


def check(folder: Path, name: str) -> None:
    """Compares all files of an answer.

    Raises:
        AssertionError: a mask has changed.
    """
    expected = np.load(folder / f"{name}.npy")
    size = expected.shape[1], expected.shape[2]
    for file, read in READERS.items():
        found = read(folder / name / file, size)
        assert len(found) == len(expected), (name, file)
        for mask, right in zip(found, expected, strict=True):
            if file == "yolo.txt":
                # Nothing is lost, and bridges between islands are all that is added.
                regions = cv2.connectedComponents(right.astype(np.uint8), connectivity=4)[0] - 1
                assert not (right & ~mask).any(), (name, file)
                assert (mask & ~right).sum() <= (regions - 1) * max(size), (name, file)
            else:
                assert (mask == right).all(), (name, file)
        print(f"{name}/{file}: {len(found)} masks")  # noqa: T201
    # DAVIS's tools read the index by Pillow, napari labels by tifffile.
    davis = np.asarray(Image.open(folder / name / "davis.png"))
    lowest = np.where(expected.any(axis=0), expected.argmax(axis=0) + 1, 0)
    assert (davis == lowest).all(), (name, "davis")
    labels = tifffile.imread(folder / name / "napari.tif")
    highest = np.where(expected.any(axis=0), len(expected) - expected[::-1].argmax(axis=0), 0)
    assert labels.dtype == np.uint16
    assert (labels == highest).all(), (name, "napari")


if __name__ == "__main__":
    for npy in sorted(Path(sys.argv[1]).glob("*.npy")):
        check(Path(sys.argv[1]), npy.stem)
