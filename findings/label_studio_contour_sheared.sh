#!/usr/bin/env bash
# label-studio-sdk: `contour2rle` shears the mask of any picture that is not square
#
# One expects:   `contour2rle(contours, 0, img_width, img_height)` gives the brush run lengths of the contour's region,
#                and `decode_rle` gives the region back.
# What happens:  the canvas is made as `np.zeros((img_width, img_height, 4))`, but NumPy and OpenCV take the first
#                number for the height. What lies below `img_width` rows or right of `img_height` columns is cut off,
#                and the rest is written with rows of the wrong length: a rectangle comes back as scattered stripes. A
#                wrong length would be noticed; width × height values are the right one. On square pictures all is well.
#                Hand over height and width exchanged, or draw the mask oneself and call `mask2rle`.
# Who meets it:  anybody who loads OpenCV contours, of a model's masks for example, into Label Studio as brush
#                predictions: annotators see stripes. (The region's alpha is 100, not 255, so compare with `> 0`.)
# Versions:      label-studio-sdk 2.1.2, opencv-python-headless 4.12.0.88, numpy 2.2.6
# Source:        label-studio-sdk `converter/brush.py`, contour2rle
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q label-studio-sdk==2.1.2 opencv-python-headless==4.12.0.88 numpy==2.2.6
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import cv2
import numpy as np
from label_studio_sdk.converter.brush import contour2rle, decode_rle

print("label-studio-sdk", version("label-studio-sdk"), "OpenCV", cv2.__version__)


def round_trip(height, width, exchanged=False):
    """Returns how many pixels a rectangle of 20×40 has after it, and its overlap with itself (IoU)."""
    mask = np.zeros((height, width), np.uint8)
    mask[10:30, 20:60] = 1
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    size = (height, width) if exchanged else (width, height)
    values = decode_rle(contour2rle(contours, 0, *size))
    back = values.reshape(height, width, 4)[..., 3] > 0
    return int(back.sum()), round(float((back & (mask > 0)).sum() / (back | (mask > 0)).sum()), 2)


square, wide, flat, told = round_trip(80, 80), round_trip(80, 120), round_trip(40, 120), round_trip(40, 120, True)
print("the rectangle has 800 pixels; after a round trip (pixels, IoU):")
print("80×80:", square, "80×120:", wide, "40×120:", flat, "40×120 with height and width exchanged:", told)

assert square == (800, 1.0) and told == (800, 1.0)
assert wide[1] < 0.5 and flat[1] < 0.5, "pictures that are not square come back whole now"
PY
