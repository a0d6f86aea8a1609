#!/usr/bin/env bash
# tifffile, Pillow and GDAL: a boolean mask that changes sides on its way through a TIFF file
#
# One expects:   `tifffile.imwrite("mask.tif", mask)` of a bool array gives a file whose object is white, and every
#                reader agrees which pixels are the object.
# What happens:  tifffile writes bool as 1 bit with the photometric interpretation "0 is white". It reads its own file
#                back unchanged, and so does rasterio, for neither applies that tag. Pillow does: there the object is
#                False and the background True. No warning on either side. Worse, Pillow applies the tag to 1 and 8
#                bits only: the same picture as uint16 "0 is white" keeps its values, so an X-ray of 8 bits and its
#                16-bit original are negatives of each other.
# Who meets it:  anybody who saves a bool mask with tifffile and hands it to a tool that reads with Pillow.
#                `mask.astype(np.uint8) * 255` or `photometric="minisblack"` helps.
# Versions:      tifffile 2026.3.3, Pillow 13.0.0, rasterio 1.4.4, numpy 2.2.6
# Source:        tifffile `tifffile.py`, TiffWriter.write (bilevel: `photometric = MINISWHITE`); Pillow
#                `TiffImagePlugin.py`, OPEN_INFO (photometric 0: "1;I" and "L;I", but plain "I;16")
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q tifffile==2026.3.3 Pillow==13.0.0 rasterio==1.4.4 numpy==2.2.6
venv/bin/python -W ignore - <<'PY'
import numpy as np
import PIL
import rasterio
import tifffile
from PIL import Image

print("tifffile", tifffile.__version__, "Pillow", PIL.__version__, "rasterio", rasterio.__version__)

mask = np.zeros((6, 10), bool)
mask[1:3, 1:4] = True
tifffile.imwrite("mask.tif", mask)
with tifffile.TiffFile("mask.tif") as file:
    print("photometric:", file.pages[0].photometric.name, "bits:", file.pages[0].bitspersample)
with rasterio.open("mask.tif") as dataset:
    by_rasterio = dataset.read(1)
by_tifffile, by_pillow = tifffile.imread("mask.tif"), np.array(Image.open("mask.tif"))
print("object of", int(mask.sum()), "pixels; tifffile", int(by_tifffile.sum()), "rasterio", int(by_rasterio.sum()))
print("Pillow", int(by_pillow.sum()), "- which is the background:", bool((by_pillow == ~mask).all()))

tifffile.imwrite("plain.tif", mask, photometric="minisblack")
print("with photometric='minisblack', Pillow:", int(np.array(Image.open("plain.tif")).sum()))

values = np.array([[0, 1], [2, 250]])
depths = {}
for dtype in (np.uint8, np.uint16):
    tifffile.imwrite("x_ray.tif", values.astype(dtype), photometric="miniswhite")
    depths[dtype.__name__] = np.array(Image.open("x_ray.tif")).tolist()
print("'0 is white' read by Pillow:", depths)

assert (by_tifffile == mask).all() and (by_rasterio == mask).all()
assert (by_pillow == ~mask).all(), "Pillow and tifffile agree now"
assert (np.array(Image.open("plain.tif")) == mask).all()
assert depths == {"uint8": [[255, 254], [253, 5]], "uint16": [[0, 1], [2, 250]]}, "depths are treated alike now"
PY
