#!/usr/bin/env bash
# supervision and pycocotools: objects with a hole or in two parts vanish from the evaluation
#
# One expects:   a dataset that supervision saves as COCO, evaluated with pycocotools against its very own masks, has
#                an average precision of 1.
# What happens:  -1, "nothing to evaluate". `as_coco` stores a mask that has a hole or more than one part as run
#                lengths and sets `iscrowd` to 1 with them. For COCOeval a crowd is a region to be ignored, not an
#                object: it is left out of the recall, and each detection on it counts as neither right nor wrong.
#                With a mixed dataset the figure is plausible and silently covers the simple shapes only.
# Who meets it:  anybody who corrects masks with supervision and measures a model on them. The way out is to set
#                `iscrowd` to 0 in the file: pycocotools takes run lengths all the same. Setting it to 0 beforehand,
#                in the detections' `data`, is none: then the hole's outline is written as one more polygon, which
#                fills it.
# Versions:      supervision 0.31.2, pycocotools 2.0.11
# Source:        supervision `dataset/formats/coco.py`, detections_to_coco_annotations (its docstring says so);
#                pycocotools `cocoeval.py`, COCOeval._prepare (`gt['ignore'] = 'iscrowd' in gt and gt['iscrowd']`)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q supervision==0.31.2 pycocotools==2.0.11
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
from pycocotools.cocoeval import COCOeval

print("supervision", sv.__version__, "pycocotools", version("pycocotools"))
Image.new("RGB", (64, 64)).save("picture.png")


def average_precision(mask, crowd=None):
    """Returns the precision of a perfect detection, and the annotation as supervision wrote it."""
    truth = sv.Detections(xyxy=sv.mask_to_xyxy(mask[None]), mask=mask[None], class_id=np.array([0]))
    dataset = sv.DetectionDataset(classes=["cell"], images=["picture.png"], annotations={"picture.png": truth})
    dataset.as_coco(images_directory_path=None, annotations_path="truth.json")
    document = json.load(open("truth.json"))
    annotation = document["annotations"][0]
    if crowd is not None:
        annotation["iscrowd"] = crowd
        json.dump(document, open("truth.json", "w"))
    run_lengths = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    detection = {key: annotation[key] for key in ("image_id", "category_id")} | {"score": 0.9}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO("truth.json")
        evaluation = COCOeval(coco, coco.loadRes([detection | {"segmentation": run_lengths}]), "segm")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return evaluation.stats[0], annotation["iscrowd"]


plain = np.zeros((64, 64), bool)
plain[5:25, 5:25] = True
hole, parts = plain.copy(), plain.copy()
hole[10:20, 10:20] = False
parts[40:60, 40:60] = True
seen = {name: average_precision(mask) for name, mask in (("plain", plain), ("hole", hole), ("parts", parts))}
for name, (precision, crowd) in seen.items():
    print(f"{name}: iscrowd {crowd}, average precision of the perfect detection {precision:.2f}")
print(f"hole, with iscrowd set to 0 by hand: {average_precision(hole, crowd=0)[0]:.2f}")

assert seen["plain"][1] == 0 and seen["plain"][0] > 0.8
assert seen["hole"] == (-1.0, 1) and seen["parts"] == (-1.0, 1), "holes and parts count now"
assert average_precision(hole, crowd=0)[0] > 0.99
PY
