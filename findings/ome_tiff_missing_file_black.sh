#!/usr/bin/env bash
# tifffile: one file of an OME-TIFF set is read as the whole set, and what is missing is black
#
# One expects:   `imread(file)` of a file that holds one page gives that page.
# What happens:  microscopes write a file for each channel, depth or time, and the OME-XML in each describes all of
#                them. tifffile opens the others beside the file that was named, and returns the whole set, whichever
#                one was asked for: no way to see from the array which plane is this file's. Where the others are not
#                there (a single file was uploaded, or the bytes are in memory), the array has the set's full shape
#                all the same and zeros for what is missing. The first plane of a second file is then all black, and
#                a mere log line says so. `imread(file, key=0)`, `TiffFile(file, _multifile=False)` or `pages[0]`
#                give what is in the file.
# Who meets it:  anybody who takes pictures from users: the upload is a good picture of the second channel, and what
#                is segmented is a black one. `imread("…_c1.ome.tif")` in a folder of channels gives channel 0 first.
# Versions:      tifffile 2026.3.3, numpy 2.2.6
# Source:        tifffile `tifffile.py`, TiffFile._series_ome ("Missing data are zeroed")
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q tifffile==2026.3.3 numpy==2.2.6
venv/bin/python - <<'PY'
import io
import shutil
from pathlib import Path

import numpy as np
import tifffile

print("tifffile", tifffile.__version__)

NAMES = ["cells_c0.ome.tif", "cells_c1.ome.tif"]
UUIDS = [f"urn:uuid:00000000-0000-4000-8000-00000000000{channel}" for channel in range(2)]
PLANES = "".join(
    f'<TiffData IFD="0" FirstC="{channel}" FirstZ="0" FirstT="0" PlaneCount="1">'
    f'<UUID FileName="{NAMES[channel]}">{UUIDS[channel]}</UUID></TiffData>'
    for channel in range(2)
)
SET = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="16" SizeY="8" SizeC="2" SizeZ="1" SizeT="1"
BigEndian="false"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/>
{planes}</Pixels></Image></OME>"""

Path("together").mkdir()
for channel, name in enumerate(NAMES):
    picture = np.full((8, 16), 100 * (channel + 1), np.uint16)
    description = SET.format(uuid=UUIDS[channel], planes=PLANES)
    tifffile.imwrite(f"together/{name}", picture, description=description, metadata=None)
Path("alone").mkdir()
shutil.copy(f"together/{NAMES[1]}", "alone")


def levels(file, **options):
    """Returns the shape that is read and the mean of each plane."""
    array = tifffile.imread(file, **options)
    return array.shape, array.reshape(-1, 8 * 16).mean(1).tolist()


second = f"alone/{NAMES[1]}"
seen = {
    "the first file, among the set": levels(f"together/{NAMES[0]}"),
    "the second file, among the set": levels(f"together/{NAMES[1]}"),
    "the second file alone": levels(second),
    "its bytes": levels(io.BytesIO(Path(second).read_bytes())),
    "the second file alone, key=0": levels(second, key=0),
    "the second file alone, _multifile=False": levels(second, _multifile=False),
}
with tifffile.TiffFile(second) as file:
    print("pages in the second file:", len(file.pages), "- mean", file.pages[0].asarray().mean())
for name, result in seen.items():
    print(f"{name}: shape {result[0]}, planes' means {result[1]}")

whole, black, own = ((2, 8, 16), [100.0, 200.0]), ((2, 8, 16), [0.0, 200.0]), ((8, 16), [200.0])
assert seen["the first file, among the set"] == seen["the second file, among the set"] == whole
assert seen["the second file alone"] == seen["its bytes"] == black, "what is missing is left out now"
assert seen["the second file alone, key=0"] == own and seen["the second file alone, _multifile=False"] == own
PY
