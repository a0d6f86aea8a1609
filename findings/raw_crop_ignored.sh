#!/usr/bin/env bash
# rawpy: a developed raw picture is larger than the photograph, and shifted against it
#
# One expects:   `rawpy.imread(file).postprocess()` has the size that the camera and every raw converter show: a DNG
#                says it in DefaultCropOrigin and DefaultCropSize, other raw files in the maker's notes.
# What happens:  the whole active area is developed, with the margin that is only meant for demosaicing. LibRaw reads
#                the crop (`sizes.crop_left_margin`, `crop_top_margin`, `crop_width`, `crop_height`) and does not apply
#                it. Between a raw file and the JPEG that was taken with it, all coordinates are off by the margin. The
#                margins are given for the picture before it is turned: cut one that was developed with `user_flip=0`,
#                or turn them too.
# Who meets it:  anybody who clicks on the preview or the camera's JPEG and segments the raw picture, or carries masks
#                over to Lightroom or darktable.
# Versions:      rawpy 0.28.0 (its own LibRaw), tifffile 2026.3.3 (writes the file), numpy 2.4.6
# Source:        rawpy `_rawpy.pyx`, RawPy.postprocess (LibRaw has adjust_to_raw_inset_crop for it; nothing calls it)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q rawpy==0.28.0 tifffile==2026.3.3 numpy==2.4.6
venv/bin/python -W ignore - <<'PY'
import numpy as np
import rawpy
import tifffile

print("rawpy", rawpy.__version__, "LibRaw", rawpy.libraw_version)

HEIGHT, WIDTH, LEFT, TOP, CROP_WIDTH, CROP_HEIGHT = 64, 96, 8, 4, 80, 56
sensor = np.full((HEIGHT, WIDTH), 500, np.uint16)
sensor[TOP : TOP + 20, LEFT : LEFT + 20] = 12000  # in the corner of the photograph
IDENTITY = sum([(int(one), 1) for one in np.eye(3).ravel()], ())


def write(orientation):
    """Writes a DNG of a Bayer sensor, whose photograph is cut out by its default crop."""
    tags = [
        (274, "H", 1, orientation, True),
        (33421, "H", 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, "B", 4, (0, 1, 1, 2), True),  # CFAPattern
        (50706, "B", 4, (1, 4, 0, 0), True),  # DNGVersion
        (50708, "s", 0, "Camera", True),  # UniqueCameraModel
        (50714, "H", 1, 0, True),  # BlackLevel
        (50717, "I", 1, 16383, True),  # WhiteLevel
        (50719, "I", 2, (LEFT, TOP), True),  # DefaultCropOrigin
        (50720, "I", 2, (CROP_WIDTH, CROP_HEIGHT), True),  # DefaultCropSize
        (50721, "2i", 9, IDENTITY, True),  # ColorMatrix1
        (50728, "2I", 3, (1, 1) * 3, True),  # AsShotNeutral
        (50778, "H", 1, 21, True),  # CalibrationIlluminant1: D65
        (50829, "I", 4, (0, 0, HEIGHT, WIDTH), True),  # ActiveArea
    ]
    tifffile.imwrite("photograph.dng", sensor, photometric=32803, extratags=tags, metadata=None, software="")


def corner(pixels):
    """Returns the x and y at which the bright square begins."""
    rows, columns = np.nonzero(pixels[..., 1] > 128)
    return int(columns.min()), int(rows.min())


write(1)
with rawpy.imread("photograph.dng") as raw:
    sizes, pixels = raw.sizes, raw.postprocess(no_auto_bright=True)
print("crop in the file:", sizes.crop_left_margin, sizes.crop_top_margin, sizes.crop_width, sizes.crop_height)
print("developed:", pixels.shape, "- the square in the photograph's corner begins at", corner(pixels))
bottom, right = sizes.crop_top_margin + sizes.crop_height, sizes.crop_left_margin + sizes.crop_width
cut = pixels[sizes.crop_top_margin : bottom, sizes.crop_left_margin : right]
print("cut by hand:", cut.shape, "- it begins at", corner(cut))
write(6)
with rawpy.imread("photograph.dng") as raw:
    turned, turned_sizes = raw.postprocess().shape, raw.sizes
print("turned by 90°: developed", turned, "crop", turned_sizes.crop_width, turned_sizes.crop_height)

crop = (LEFT, TOP, CROP_WIDTH, CROP_HEIGHT)
assert (sizes.crop_left_margin, sizes.crop_top_margin, sizes.crop_width, sizes.crop_height) == crop
assert pixels.shape == (HEIGHT, WIDTH, 3), "the crop is applied now"
assert abs(np.subtract(corner(pixels), (LEFT, TOP))).max() <= 1
assert cut.shape == (CROP_HEIGHT, CROP_WIDTH, 3) and corner(cut) == (0, 0)
assert turned == (WIDTH, HEIGHT, 3) and (turned_sizes.crop_width, turned_sizes.crop_height) == crop[2:]
PY
