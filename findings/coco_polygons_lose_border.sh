#!/usr/bin/env bash
# supervision, OpenCV and pycocotools: a mask loses its right and lower border as a COCO polygon
#
# One expects:   a mask without holes that supervision saves as a COCO polygon is read back by pycocotools as the same
#                mask, give or take a corner where the outline was simplified.
# What happens:  a column and a row are missing. OpenCV's contours, which supervision and nearly all examples write,
#                run through the centres of the border pixels and are numbered as pixels; COCO's polygons run along
#                pixels' edges. Of a 4×4 mask 9 of 16 pixels are left (IoU 0.56), of one that is two pixels high and
#                30 wide 29 of 60. The other way round a polygon grows: supervision reads one around 16 pixels as 25.
#                `area` in the same file is the true one. Run lengths are exact both ways; of polygons, those of
#                rasterio's `features.shapes` run along the edges.
# Who meets it:  anybody who measures small objects: the perfect mask is scored 0.56, and a model that was trained on
#                polygons learns to draw objects one pixel too small.
# Versions:      supervision 0.31.2, opencv-python-headless 4.12.0.88, pycocotools 2.0.11, rasterio 1.4.4, numpy 2.2.6
# Source:        supervision `detection/utils/converters.py`, mask_to_polygons and polygon_to_mask (cv2.findContours and
#                cv2.fillPoly: the border belongs to the region); pycocotools `common/maskApi.c`, rleFrPoly
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q supervision==0.31.2 opencv-python-headless==4.12.0.88 pycocotools==2.0.11 \
    rasterio==1.4.4 numpy==2.2.6
venv/bin/python -W ignore - <<'PY'
import contextlib
import io
import json
from importlib.metadata import version

import numpy as np
import supervision as sv
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from rasterio import features

print("supervision", sv.__version__, "pycocotools", version("pycocotools"))
Image.new("RGB", (64, 64)).save("picture.png")


def dataset(mask):
    """Returns a supervision dataset of one picture and one mask."""
    truth = sv.Detections(xyxy=sv.mask_to_xyxy(mask[None]), mask=mask[None], class_id=np.array([0]))
    return sv.DetectionDataset(classes=["cell"], images=["picture.png"], annotations={"picture.png": truth})


def by_pycocotools(height, width):
    """Writes a rectangle with supervision; returns its pixels, those that pycocotools reads, and the annotation."""
    mask = np.zeros((64, 64), bool)
    mask[10 : 10 + height, 20 : 20 + width] = True
    dataset(mask).as_coco(images_directory_path=None, annotations_path="truth.json", approximation_percentage=0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO("truth.json")
    annotation = coco.loadAnns(coco.getAnnIds())[0]
    return int(mask.sum()), int(coco.annToMask(annotation).sum()), annotation


def by_supervision(polygon):
    """Returns how many pixels supervision reads for a COCO polygon."""
    document = json.load(open("truth.json"))
    document["annotations"][0]["segmentation"] = [polygon]
    json.dump(document, open("edges.json", "w"))
    read = sv.DetectionDataset.from_coco(images_directory_path=".", annotations_path="edges.json", force_masks=True)
    return int(next(iter(read.annotations.values())).mask.sum())


square, line = by_pycocotools(4, 4), by_pycocotools(2, 30)
for name, (pixels, left, annotation) in (("4×4", square), ("2×30", line)):
    print(f"{name}: {pixels} pixels, pycocotools reads {left}; area {annotation['area']}, bbox {annotation['bbox']}")
    print("  polygon", annotation["segmentation"])

mask = np.zeros((64, 64), np.uint8)
mask[10:14, 20:24] = 1
outline = next(shape for shape, value in features.shapes(mask) if value == 1)["coordinates"][0]
edges = [float(number) for point in outline for number in point]
read = int(coco_mask.decode(coco_mask.frPyObjects([edges], 64, 64)).sum())
grown = by_supervision(edges)
print("polygon along the edges of 4×4:", edges, "- pycocotools reads", read, "pixels, supervision", grown)

assert square[:2] == (16, 9), "polygons of supervision are read back whole now"
assert line[:2] == (60, 29)
assert read == 16
assert grown == 25, "supervision takes COCO polygons as edges now"
PY
