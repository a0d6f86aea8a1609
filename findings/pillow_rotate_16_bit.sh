#!/usr/bin/env bash
# Pillow: a 16-bit picture that is rotated with interpolation comes back with its bytes mixed up
#
# One expects:   `image.rotate(10, Resampling.BILINEAR)` and `transform` interpolate a 16-bit grey picture, as `resize`
#                does with the same filters, or raise ValueError, as many other functions do for mode "I;16".
# What happens:  NEAREST is right. BILINEAR and BICUBIC take the rows for 8-bit ones: they interpolate between the low
#                and high bytes of neighbouring pixels, write single bytes, and never look at the right half. A
#                constant picture of 1000 comes back as stripes of 3 and 232, its bytes, even when nothing is moved at
#                all; no error, and size and mode are right. Convert to mode "F" or "I" first: those are interpolated
#                correctly.
# Who meets it:  anybody who turns or shears 16-bit microscopy, X-ray or depth pictures as training data (torchvision
#                hands PIL pictures to the same functions): what is learnt is noise with a sound mask.
# Versions:      Pillow 13.0.0, numpy 2.4.6
# Source:        Pillow `src/libImaging/Geometry.c`, getfilter (`im->image8` is set for "I;16" too; only the NEAREST
#                case looks at the type and has a filter for 16 bits)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q Pillow==13.0.0 numpy==2.4.6
venv/bin/python - <<'PY'
import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)

STAY = (1, 0, 0, 0, 1, 0)
picture = Image.fromarray(np.full((8, 12), 1000, np.uint16))
print("mode", picture.mode, "- every pixel is 1000")


def values(image):
    """Returns the values of the middle of a picture, away from the corners that a rotation leaves empty."""
    return sorted(set(np.asarray(image)[3:5, 2:10].ravel().tolist()))


seen = {}
for name in ("NEAREST", "BILINEAR", "BICUBIC"):
    resampling = Image.Resampling[name]
    seen[name] = {
        "resized": values(picture.resize((24, 16), resampling)),
        "rotated by 5°": values(picture.rotate(5, resampling)),
        "transformed, nothing moved": values(picture.transform(picture.size, Image.Transform.AFFINE, STAY, resampling)),
        "rotated by 5° as F": values(picture.convert("F").rotate(5, resampling)),
    }
    print(name, seen[name])

for name in ("BILINEAR", "BICUBIC"):
    assert seen[name]["resized"] == [1000]
    assert max(seen[name]["rotated by 5°"]) <= 255, "16 bits are rotated with interpolation now"
    assert 1000 not in seen[name]["transformed, nothing moved"], "16 bits are transformed with interpolation now"
    assert np.allclose(seen[name]["rotated by 5° as F"], 1000)
assert seen["NEAREST"]["rotated by 5°"] == [1000]
PY
