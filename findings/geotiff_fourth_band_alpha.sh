#!/usr/bin/env bash
# rasterio: of a four-band 8-bit GeoTIFF the fourth band becomes the mask of the others
#
# One expects:   `rasterio.open("scene.tif", "w", count=4, dtype="uint8")` writes four plain bands, and without nodata
#                or a mask every pixel is valid; that is how it is with three or five bands, and with four of uint16.
# What happens:  four bands of 8 bits are written as red, green, blue and alpha. Near infrared is declared to be
#                transparency, and `dataset_mask()` and `read(masked=True)` follow it: open water, black in the
#                infrared, is masked out, and any value between 1 and 255 counts as valid only because it is not 0.
#                Viewers and Pillow (mode RGBA) show the scene half transparent. `alpha="no"`, or
#                `photometric="minisblack"`, at writing avoids it; a reader can only look at the band's description
#                and doubt `ColorInterp.alpha`.
# Who meets it:  anybody who scales RGB and infrared to 8 bits for a model and keeps them in one file, and anybody who
#                takes the valid area from a user's file, to leave the rest out of a histogram or paint it white.
# Versions:      rasterio 1.4.4 (GDAL 3.10.3), tifffile 2026.3.3, Pillow 13.0.0, numpy 2.2.6
# Source:        GDAL `frmts/gtiff/gtiffdataset_write.cpp`, GTiffDataset::CreateLL (default photometric
#                interpretation of 3 and 4 bands of bytes); rasterio `_io.pyx`, DatasetReaderBase.dataset_mask
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q rasterio==1.4.4 tifffile==2026.3.3 Pillow==13.0.0 numpy==2.2.6
venv/bin/python -W ignore - <<'PY'
import numpy as np
import PIL
import rasterio
import tifffile
from PIL import Image

print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__, "Pillow", PIL.__version__)

infrared = np.full((10, 10), 180)
infrared[:4] = 0  # water


def written(count, dtype, **options):
    """Writes so many bands, the last one infrared; returns what the last band is taken for and the valid pixels."""
    bands = np.stack([np.full((10, 10), 90)] * (count - 1) + [infrared]).astype(dtype)
    profile = {"driver": "GTiff", "width": 10, "height": 10, "count": count, "dtype": dtype, **options}
    with rasterio.open("scene.tif", "w", **profile) as dataset:
        dataset.write(bands)
    with rasterio.open("scene.tif") as dataset:
        assert (dataset.read() == bands).all()
        return dataset.colorinterp[-1].name, int((dataset.dataset_mask() > 0).sum())


seen = {}
for count, dtype, options in ((3, "uint8", {}), (5, "uint8", {}), (4, "uint16", {}), (4, "uint8", {})):
    seen[count, dtype] = written(count, dtype, **options)
    print(f"{count} bands of {dtype}: the last one is {seen[count, dtype][0]}, {seen[count, dtype][1]} of 100 valid")
with tifffile.TiffFile("scene.tif") as file:
    print("tags of the last file:", file.pages[0].photometric.name, [kind.name for kind in file.pages[0].extrasamples])
print("Pillow:", Image.open("scene.tif").mode)
told = written(4, "uint8", alpha="no")
print("4 bands of uint8 with alpha='no':", told)

assert all(seen[kind][1] == 100 for kind in ((3, "uint8"), (5, "uint8"), (4, "uint16")))
assert seen[4, "uint8"] == ("alpha", 60), "the fourth band is a plain one now"
assert told == ("undefined", 100)
PY
