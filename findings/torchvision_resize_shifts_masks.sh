#!/usr/bin/env bash
# torchvision: `transforms.v2.Resize` moves a mask against its picture and its box
#
# One expects:   the v2 transforms take picture, mask and boxes together so that they stay together: after
#                `Resize` the mask lies on its object, give or take its jagged border.
# What happens:  the mask moves to the right and downwards, by nearly half a pixel of the result: three and a half of
#                the original when it is made eight times smaller. Pictures and boxes are scaled about pixel centres;
#                masks with "nearest", which takes the top left pixel of each block, not the middle one. A single mask
#                may look right, by the place where its edges happen to lie; the mean over many does not.
#                `interpolation=NEAREST_EXACT` would not move masks, but is asked of the pictures too; every other
#                value is silently NEAREST for masks. Made larger by a whole number, masks stay in place.
# Who meets it:  anybody who trains or scores at a lower resolution: truth and picture disagree by half a pixel, which
#                small objects feel. Resize masks apart, with `F.interpolate(mode="nearest-exact")`, or as floats with
#                antialias and a threshold.
# Versions:      torchvision 0.29.2, torch 2.15.0, numpy 2.4.6
# Source:        torchvision `transforms/v2/functional/_geometry.py`, resize_mask (all but NEAREST_EXACT
#                becomes NEAREST)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
venv/bin/python -W ignore - <<'PY'
import torch
import torchvision
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

print("torchvision", torchvision.__version__, "torch", torch.__version__)

SIZE, SIDE = 240, 41
PLACES = range(40, 160)


def middles(weights):
    """Returns the horizontal middle of what is not 0 in each of `N×h×w`, in pixels of the original."""
    columns = weights.double().sum(1)
    places = (torch.arange(columns.shape[1]) + 0.5) * SIZE / columns.shape[1]
    return (columns * places).sum(1) / columns.sum(1)


squares = torch.zeros(len(PLACES), SIZE, SIZE, dtype=torch.uint8)
for square, left in zip(squares, PLACES):
    square[left : left + SIDE, left : left + SIDE] = 255
boxes = [[left, left, left + SIDE, left + SIDE] for left in PLACES]
sample = {
    "pictures": tv_tensors.Image(squares),
    "masks": tv_tensors.Mask(squares),
    "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(SIZE, SIZE), dtype=torch.float64),
}
truth = middles(squares)


def shifts(size, interpolation=InterpolationMode.BILINEAR):
    """Returns how far pictures, boxes and masks move to the right on the average, in pixels of the original."""
    small = v2.Resize((size, size), interpolation=interpolation)(sample)
    boxes = small["boxes"][:, [0, 2]].mean(1) * SIZE / size
    moved = (middles(small["pictures"]), boxes, middles(small["masks"]))
    return [round(float((places - truth).mean()), 1) + 0.0 for places in moved]


seen = {size: shifts(size) for size in (120, 80, 48, 30, 480)}
for size, (picture, box, mask) in seen.items():
    print(f"{SIZE} to {size}: pictures move by {picture}, boxes by {box}, masks by {mask} pixels of the original")
exact = shifts(48, InterpolationMode.NEAREST_EXACT)[2]
print(f"{SIZE} to 48 with NEAREST_EXACT: masks by {exact}")

assert all(abs(picture) < 0.2 and abs(box) < 0.2 for picture, box, _ in seen.values())
assert seen[80][2] >= 0.9 and seen[48][2] >= 1.9 and seen[30][2] >= 3.3, "masks stay in place now"
assert abs(exact) < 0.2 and abs(seen[480][2]) < 0.2
PY
