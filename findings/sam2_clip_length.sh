#!/usr/bin/env bash
# sam2: in clips of fewer than 16 frames, the masks depend on how many frames come later
#
# One expects:   tracking forward is causal: the mask on frame 3 follows from frames 0 to 3 and the prompt, so a clip
#                that is cut off behind frame 3 gives the same masks as the whole.
# What happens:  the masks differ. The tracker tells object pointers of earlier frames apart by their distance in
#                time, and divides it by the number of pointers it may keep less one; that number is min(frames in the
#                clip, 16). So in a clip of 4 frames one step back is coded as 1/3, in one of 6 as 1/5, from 16 on as
#                1/15, whatever frame is looked at.
# Who meets it:  anybody who compares a track with that of a longer or shorter cut, tests with a few frames what runs
#                on many, or feeds a stream whose length is not known: the same clicks give other masks.
# Versions:      sam2 1.1.0, torch 2.15.0, torchvision 0.29.2 (random weights, enlarged so that the memory matters; no
#                checkpoint is fetched)
# Source:        sam2 `modeling/sam2_base.py`, SAM2Base._prepare_memory_conditioned_features (max_obj_ptrs_in_encoder,
#                t_diff_max)
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

print("sam2", version("sam2"), "torch", torch.__version__)

torch.manual_seed(0)
model = build_sam2_video_predictor(
    "configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", hydra_overrides_extra=["++model.image_size=128"]
)
with torch.no_grad():
    for name, weights in model.named_parameters():
        if ("memory_attention" in name or "obj_ptr" in name) and weights.dim() == 2:
            weights.mul_(4)


@torch.inference_mode()
def track(frames):
    """Returns the logits of each frame of a clip whose square moves to the right by 3 pixels a frame."""
    folder = Path(f"clip_{frames}")
    folder.mkdir(exist_ok=True)
    for index in range(frames):
        picture = np.zeros((128, 128, 3), np.uint8)
        picture[30:60, 20 + 3 * index : 50 + 3 * index] = 255
        Image.fromarray(picture).save(folder / f"{index:05d}.jpg")
    state = model.init_state(str(folder))
    model.add_new_points_or_box(state, 0, 1, points=np.array([[35, 45]], np.float32), labels=np.array([1], np.int32))
    return [mask[0, 0].numpy().copy() for _, _, mask in model.propagate_in_video(state)]


short, again, whole = track(4), track(4), track(6)
differences = [float(abs(a - b).max()) for a, b in zip(short, whole)]
repeated = max(float(abs(a - b).max()) for a, b in zip(short, again))
print("the same 4 frames, alone and followed by 2 more; largest difference of a logit on each:", differences)
print("pixels that change sides:", [int(((a > 0) != (b > 0)).sum()) for a, b in zip(short, whole)])
print("the short clip twice:", repeated)

assert repeated < 1e-6
assert differences[0] < 1e-6, "the prompted frame sees no memory"
assert min(differences[1:]) > 1e-3, "masks no longer depend on the clip's length"
PY
