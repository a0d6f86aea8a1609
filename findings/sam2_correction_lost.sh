#!/usr/bin/env bash
# sam2: a click that corrects a tracked frame is forgotten when tracking goes on
#
# One expects:   track an object, click on a frame where the mask is wrong, see it corrected, propagate again: the
#                correction holds on that frame and steers the frames behind it, as on the first prompted frame.
# What happens:  `add_new_points_or_box` returns the corrected mask, but the frame stays an ordinary one: only frames
#                with a prompt that came before any tracking are "conditioning" frames. The next `propagate_in_video`
#                over it computes it anew from its memory, and every frame, the clicked one too, comes out as before
#                the click, to the bit. No warning. Building the predictor with
#                `add_all_frames_to_correct_as_cond=True` keeps the click.
# Who meets it:  anybody who offers corrections with the predictor's default options: users click, see the right mask,
#                and get the wrong one in the export.
# Versions:      sam2 1.1.0, torch 2.15.0, torchvision 0.29.2 (random weights, enlarged so that the memory matters; no
#                checkpoint is fetched)
# Source:        sam2 `sam2_video_predictor.py`, SAM2VideoPredictor.__init__
#                (add_all_frames_to_correct_as_cond=False), add_new_points_or_box (is_cond) and propagate_in_video
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

Path("clip").mkdir()
for index in range(4):
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[30:60, 20 + 3 * index : 50 + 3 * index] = 255
    Image.fromarray(picture).save(f"clip/{index:05d}.jpg")


@torch.inference_mode()
def corrected(*options):
    """Tracks, clicks on frame 2, tracks again; returns how far the click and the second track moved the logits."""
    torch.manual_seed(0)
    overrides = ["++model.image_size=128", *options]
    model = build_sam2_video_predictor(
        "configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", hydra_overrides_extra=overrides
    )
    for name, weights in model.named_parameters():
        if ("memory_attention" in name or "obj_ptr" in name) and weights.dim() == 2:
            weights.mul_(4)
    label = np.array([1], np.int32)

    def track():
        return [mask[0, 0].numpy().copy() for _, _, mask in model.propagate_in_video(state, start_frame_idx=0)]

    state = model.init_state("clip")
    model.add_new_points_or_box(state, 0, 1, points=np.array([[35, 45]], np.float32), labels=label)
    before = track()
    _, _, mask = model.add_new_points_or_box(state, 2, 1, points=np.array([[100, 100]], np.float32), labels=label)
    clicked = mask[0, 0].numpy().copy()
    after = track()
    return float(abs(clicked - before[2]).max()), [float(abs(a - b).max()) for a, b in zip(after, before)]


click, kept = corrected()
print("by default: the click moves frame 2 by", click, "- after tracking again, each frame differs by", kept)
click_true, kept_true = corrected("++model.add_all_frames_to_correct_as_cond=true")
print("with add_all_frames_to_correct_as_cond: by", click_true, "- and", kept_true)

assert click > 1e-2 and click_true > 1e-2
assert max(kept) == 0.0, "the correction holds by default now"
assert kept_true[2] > 1e-2
PY
