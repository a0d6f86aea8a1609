#!/usr/bin/env bash
# pycocotools: `mask.encode` of an array that holds more than one non-zero value
#
# One expects:   every pixel that is not 0 belongs to the mask, as for numpy, OpenCV and Pillow.
# What happens:  the encoder does not look at the values, only at whether a pixel differs from the one before it, and
#                begins a new run there. Runs are background and mask in turn, so a step from 1 to 2 ends the mask. A
#                label picture loses its inner part, an anti-aliased mask (0, 128, 255) keeps only its rim, and
#                nothing is raised.
# Who meets it:  anybody who encodes a mask that was drawn smoothly, resized with a filter, or cut out of a label
#                image by multiplying. `(mask > 0).astype(np.uint8)` is the way out.
# Versions:      pycocotools 2.0.11, numpy 2.4.6
# Source:        pycocotools `common/maskApi.c`, rleEncode (compares each pixel with the one before it, not with 0)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q pycocotools==2.0.11 numpy==2.4.6
venv/bin/python - <<'PY'
from importlib.metadata import version

import numpy as np
from pycocotools import mask as coco

print("pycocotools", version("pycocotools"), "numpy", np.__version__)

labels = np.zeros((8, 8), np.uint8)
labels[1:7, 1:7] = 1  # a cell of 6×6 pixels …
labels[3:5, 3:5] = 2  # … with a nucleus of 2×2
decoded = coco.decode(coco.encode(np.asfortranarray(labels)))
print("label image: pixels that are not 0:", np.count_nonzero(labels), "- in the encoded mask:", int(decoded.sum()))
print(decoded)

soft = np.zeros((8, 8), np.uint8)
soft[1:7, 1:7] = 128  # a soft rim
soft[2:6, 2:6] = 255
from_soft = coco.decode(coco.encode(np.asfortranarray(soft)))
print("soft mask: pixels that are not 0:", np.count_nonzero(soft), "- in the encoded mask:", int(from_soft.sum()))

hard = coco.decode(coco.encode(np.asfortranarray((labels > 0).astype(np.uint8))))
print("after `> 0`:", int(hard.sum()))

assert decoded.sum() == 32, "the nucleus is part of the mask now"
assert (decoded[3:5, 3:5] == 0).all()
assert from_soft.sum() == 20, "the soft mask is whole now"
assert hard.sum() == 36
PY
