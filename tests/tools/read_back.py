"""Reads the files of write_files.py with the tools' own code, and compares their masks with those that went in.

It runs in an environment of the tools, without this project. Tools are imported without their `__init__`, which would
need their windows, networks and servers. Of ultralytics, which needs torch, one function is taken from its source.
What a reader imports but does not use for these files is replaced.
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
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np
import shapely
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


LABEL_STUDIO = ("label_studio_sdk", "label_studio_sdk.converter", "label_studio_sdk.converter.exports")
NAPARI = ("napari", "napari.utils", "napari_builtins", "napari_builtins.io")
bare("cvat_sdk", *LABEL_STUDIO, "labelme", "labelme.utils", *NAPARI, "qubalab", "supervision")
sys.modules["labelme"].__version__ = "6.3.1"  # type: ignore[attr-defined]
for name in ("PyQt5", "dask", "napari.utils.io", "rasterio", "rasterio.features", "requests", "scipy", "scipy.spatial"):
    sys.modules[name] = MagicMock()
sys.modules["label_studio_sdk.converter.utils"] = MagicMock()
for name, value in vars(importlib.import_module("labelme.utils.image")).items():
    setattr(sys.modules["labelme.utils"], name, value)
cvat = importlib.import_module("cvat_sdk.masks")
brush = importlib.import_module("label_studio_sdk.converter.brush")
label_file = importlib.import_module("labelme._label_file")
labelme_shape = importlib.import_module("labelme.utils.shape")
brush_to_coco = importlib.import_module("label_studio_sdk.converter.exports.brush_to_coco")
napari_reader = importlib.import_module("napari_builtins.io._read")
qupath = importlib.import_module("qubalab.objects")
datasets = importlib.import_module("supervision.dataset.core")
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


def read_converted(path: Path, size: Size) -> list[Mask]:
    """As Label Studio's own converter makes COCO's polygons of polygons, in whole pixels."""
    [task] = json.loads(path.read_text())

    def parts() -> Iterator[tuple[Any, Mask]]:
        for region in task["predictions"][0]["result"]:
            rings, _, _ = brush_to_coco.generate_contour_from_polygon(region["value"]["points"], size[1], size[0])
            yield region["id"].split("-")[0], coco_mask.decode(coco_mask.frPyObjects(rings, *size))[..., 0] > 0

    return joined(parts())


def read_qupath(path: Path, size: Size) -> list[Mask]:
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    found = []
    for feature in qupath.geojson_features_from_string(path.read_text()):
        annotation = qupath.ImageFeature.create_from_feature(feature)
        assert annotation.is_annotation
        assert annotation.classification.names == ("object",)
        assert annotation.name.startswith("object ")
        geometry = shapely.geometry.shape(annotation.geometry)
        assert geometry.is_valid
        found.append(shapely.contains_xy(geometry, x, y))
    return found


def read_coco_dataset(path: Path, size: Size) -> list[Mask]:
    return detected(datasets.DetectionDataset.from_coco(str(path.parent), str(path), force_masks=True))


def read_yolo_dataset(path: Path, size: Size) -> list[Mask]:
    with TemporaryDirectory() as folder:
        copy(path.with_name("image.png"), folder)
        copy(path, Path(folder) / "image.txt")
        names = Path(folder) / "data.yaml"
        names.write_text("names: [object]")
        return detected(datasets.DetectionDataset.from_yolo(folder, folder, str(names)))


def detected(dataset: Any) -> list[Mask]:
    """The masks of supervision's data set of one image."""
    [(_, _, detections)] = dataset
    assert set(detections.class_id) == {0}
    return list(detections.mask)


def joined(parts: Iterator[tuple[Any, Mask]]) -> list[Mask]:
    found: dict[Any, Mask] = {}
    for key, mask in parts:
        found[key] = found[key] | mask if key in found else mask
    return list(found.values())


ANSWERS = {"one", "many", "noise", "everything"}
"""Those of write_files.py."""

READERS: dict[str, list[Callable[[Path, Size], list[Mask]]]] = {
    "coco.json": [read_coco],
    "coco_rle.json": [read_coco, read_coco_dataset],
    "coco_results.json": [read_results],
    "cvat.xml": [read_cvat],
    "labelstudio.json": [read_brush],
    "labelstudio_polygons.json": [read_percent, read_converted],
    "labelme.json": [read_labelme],
    "labelme_polygons.json": [read_labelme],
    "yolo.txt": [read_yolo, read_yolo_dataset],
    "qupath.geojson": [read_qupath],
}


def check(folder: Path, name: str) -> None:
    """Compares all files of an answer.

    Raises:
        AssertionError: a mask has changed.
    """
    expected = np.load(folder / f"{name}.npy")
    size = expected.shape[1], expected.shape[2]
    for file, read in [(file, read) for file, readers in READERS.items() for read in readers]:
        found = read(folder / name / file, size)
        where = name, file, read.__name__
        assert len(found) == len(expected), where
        for mask, right in zip(found, expected, strict=True):
            if file == "yolo.txt":
                # Nothing is lost, and bridges between islands are all that is added.
                regions = cv2.connectedComponents(right.astype(np.uint8), connectivity=4)[0] - 1
                assert not (right & ~mask).any(), where
                assert (mask & ~right).sum() <= (regions - 1) * max(size), where
            else:
                assert (mask == right).all(), where
        print(f"{name}/{file}, {read.__name__}: {len(found)} masks")  # noqa: T201
    # DAVIS's tools read the index by Pillow.
    davis = np.asarray(Image.open(folder / name / "davis.png"))
    lowest = np.where(expected.any(axis=0), expected.argmax(axis=0) + 1, 0)
    assert (davis == lowest).all(), (name, "davis")
    tiff = str(folder / name / "napari.tif")
    [[labels]] = napari_reader.napari_get_reader(tiff)(tiff)
    highest = np.where(expected.any(axis=0), len(expected) - expected[::-1].argmax(axis=0), 0)
    assert labels.dtype == np.uint16
    assert (labels == highest).all(), (name, "napari")


def main(folder: Path) -> None:
    """Compares the files of all answers.

    Raises:
        AssertionError: an answer is missing, or one that is not known is there, or a mask has changed.
    """
    found = {npy.stem for npy in folder.glob("*.npy")}
    assert found == ANSWERS, f"{folder} holds the answers {sorted(found)}, not {sorted(ANSWERS)}"
    for name in sorted(ANSWERS):
        check(folder, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
