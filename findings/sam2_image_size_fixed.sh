#!/usr/bin/env bash
# sam2: the image predictor works at 1024 pixels only, whatever `image_size` the model was built with
#
# One expects:   a model that was built with another `image_size` (256 for small pictures or a slow machine, as the
#                configuration allows) serves both predictors: each reads `model.image_size`.
# What happens:  SAM2VideoPredictor tracks at 256. SAM2ImagePredictor and the automatic mask generator on top of it
#                scale the picture to 256, run the encoder, and then raise "view size is not compatible …": the sizes
#                of the three feature maps are constants of its constructor (256, 128, 64), right for 1024 alone. The
#                message names neither. Setting `predictor._bb_feat_sizes` to a quarter, an eighth and a sixteenth of
#                the image size makes it work.
# Who meets it:  anybody who trains or runs a smaller model: the model's own code, its training code and its video
#                predictor accept it, and the first picture is refused.
# Versions:      sam2 1.1.0, torch 2.15.0, torchvision 0.29.2 (random weights: no checkpoint is fetched)
# Source:        sam2 `sam2_image_predictor.py`, SAM2ImagePredictor.__init__ (`_bb_feat_sizes`) and set_image;
#                `modeling/sam2_base.py`, SAM2Base._prepare_backbone_features (takes the sizes from the features)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 setuptools==84.2.1
SAM2_BUILD_CUDA=0 venv/bin/pip install -q --no-build-isolation sam2==1.1.0
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sam2.build_sam import build_sam2_video_predictor
from sam2.sam2_image_predictor import SAM2ImagePredictor

print("sam2", version("sam2"), "torch", torch.__version__)

torch.manual_seed(0)
model = build_sam2_video_predictor(
    "configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", hydra_overrides_extra=["++model.image_size=256"]
)
picture = np.zeros((256, 256, 3), np.uint8)
picture[60:120, 40:100] = 255
click = {"points": np.array([[70, 90]], np.float32), "labels": np.array([1], np.int32)}

Path("clip").mkdir()
Image.fromarray(picture).save("clip/00000.jpg")
state = model.init_state("clip")
_, _, tracked = model.add_new_points_or_box(state, frame_idx=0, obj_id=1, **click)
print("SAM2VideoPredictor at 256:", tuple(tracked.shape))

predictor = SAM2ImagePredictor(model)
print("SAM2ImagePredictor: model.image_size", predictor.model.image_size, "- feature maps", predictor._bb_feat_sizes)
error = None
try:
    predictor.set_image(picture)
except RuntimeError as raised:
    error = raised
print("SAM2ImagePredictor at 256:", repr(error))

predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]
predictor.set_image(picture)
masks, _, _ = predictor.predict(point_coords=click["points"], point_labels=click["labels"])
print("with the sizes set by hand:", masks.shape)

assert tracked.shape == (1, 1, 256, 256)
assert error is not None and "view size" in str(error), "the image predictor takes the model's size now"
assert masks.shape == (3, 256, 256)
PY
