#!/usr/bin/env bash
# sam2: a picture of floats from 0 to 255 is taken for one 255 times as bright
#
# One expects:   `SAM2ImagePredictor.set_image(array)` takes an RGB array "with pixel values in [0, 255]", as its
#                docstring says, so a float32 array (after resizing, denoising or averaging) is the same picture as the
#                uint8 one.
# What happens:  only uint8 is divided by 255. Of float32 the values are taken as they are and normalised as if they
#                lay between 0 and 1: the network sees values of several hundred where it expects -2 to 3. Embedding and
#                masks are others, the predicted scores look like scores, and nothing is raised. The same array divided
#                by 255 gives the very embedding of the uint8 picture. (float64 and other integers raise.)
# Who meets it:  anybody whose pictures pass through arithmetic before the model. `array.round().astype(np.uint8)`.
# Versions:      sam2 1.1.0, torch 2.15.0, torchvision 0.29.2 (random weights: no checkpoint is fetched)
# Source:        sam2 `sam2_image_predictor.py`, SAM2ImagePredictor.set_image; `utils/transforms.py`, SAM2Transforms
#                (ToTensor, which scales by the type, not by the values)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 setuptools==84.2.1
SAM2_BUILD_CUDA=0 venv/bin/pip install -q --no-build-isolation sam2==1.1.0
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from sam2.build_sam import build_sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor

print("sam2", version("sam2"), "torch", torch.__version__)

torch.manual_seed(0)
predictor = SAM2ImagePredictor(build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu"))
picture = np.full((96, 128, 3), 60, np.uint8)
picture[20:60, 40:90] = 200


def embedded(array):
    """Returns the range of what the network is given, and the embedding."""
    predictor.set_image(array)
    given = predictor._transforms(array)
    return (round(float(given.min()), 1), round(float(given.max()), 1)), predictor._features["image_embed"].clone()


def masks():
    """Returns the mask and score of a click on the object in the picture that was set last."""
    points, labels = np.array([[60, 40]]), np.array([1])
    masks, scores, _ = predictor.predict(point_coords=points, point_labels=labels, multimask_output=False)
    return masks[0] > 0, float(scores[0])


seen = {}
for name, array in (
    ("uint8", picture),
    ("float32, 0 to 255", picture.astype(np.float32)),
    ("float32, 0 to 1", picture.astype(np.float32) / 255),
):
    given, embedding = embedded(array)
    seen[name] = embedding, *masks()
    distance = float((embedding - seen["uint8"][0]).abs().max())
    changed = int((seen[name][1] != seen["uint8"][1]).sum())
    print(f"{name}: the network gets {given}, embedding off by {distance:.3g}, {changed} pixels of the mask differ")
    print(f"  score {seen[name][2]:.3f}")

assert torch.allclose(seen["float32, 0 to 1"][0], seen["uint8"][0], atol=1e-4)
assert (seen["float32, 0 to 255"][0] - seen["uint8"][0]).abs().max() > 0.1, "floats are scaled by their values now"
PY
