#!/usr/bin/env bash
# Pillow: an animation that it saves has fewer frames than it was given, wherever nothing moves
#
# One expects:   `save(save_all=True, append_images=…)` writes one frame for each picture, so mask n of a saved clip
#                belongs to frame n of the video, as in a TIFF of the same pictures.
# What happens:  in GIF, animated PNG and animated WebP, a picture that equals the one before it is not written: the
#                one before it is shown for longer. Six masks of which three differ become three frames, and a clip
#                that does not change becomes a still picture. AVIF and TIFF keep all; so does PNG, but only if no
#                `duration` is given. Nothing says that it happened; only the durations show it when one reads the
#                file, and those of WebP are in `info` only once the frame was loaded.
# Who meets it:  anybody who stores masks or labels of a video as an animation and pairs them with frames by number:
#                from the first pause on, every mask lies on an earlier frame than its own. Pair them by time, write
#                TIFF pages or one file for each frame.
# Versions:      Pillow 13.0.0, numpy 2.4.6
# Source:        Pillow `GifImagePlugin.py`, _write_multiple_frames ("This frame is identical to the previous frame");
#                `PngImagePlugin.py`, _write_multiple_frames (`not bbox and … "duration" in encoderinfo`); for WebP,
#                libwebp's WebPAnimEncoder, which `_webp.c` calls
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


def masks(lefts):
    """Returns a mask picture for each place of a square."""
    pictures = []
    for left in lefts:
        mask = np.zeros((32, 32), np.uint8)
        mask[8:16, left : left + 8] = 255
        pictures.append(Image.fromarray(mask))
    return pictures


def read_back(pictures, name, **options):
    """Returns where the square is in each frame of the saved file, and for how long each frame is shown."""
    pictures[0].save(name, save_all=True, append_images=pictures[1:], **options)
    lefts, durations = [], []
    with Image.open(name) as image:
        for index in range(image.n_frames):
            image.seek(index)
            lefts.append(image.convert("L").point(lambda value: 255 * (value > 127)).getbbox()[0])
            durations.append(image.info.get("duration"))
    return lefts, durations


rests = [2, 2, 2, 9, 9, 20]
seen = {}
for name in ("clip.gif", "clip.png", "clip.webp", "clip.avif", "clip.tif"):
    seen[name] = read_back(masks(rests), name, **({} if name == "clip.tif" else {"duration": 100}))
    print(f"{name}: square at {seen[name][0]}, shown for {seen[name][1]}")
still = read_back(masks([2, 2, 2]), "still.gif", duration=100)
timeless = {name: read_back(masks(rests), name)[0] for name in ("timeless.gif", "timeless.png")}
print("six pictures without `duration`:", {name: len(lefts) for name, lefts in timeless.items()}, "frames")
print("three equal pictures as GIF:", still)

for name in ("clip.gif", "clip.png", "clip.webp"):
    assert seen[name][0] == [2, 9, 20], f"{name} keeps equal frames now"
    assert seen[name][1] == [300, 200, 100]
assert seen["clip.avif"][0] == seen["clip.tif"][0] == rests
assert len(still[0]) == 1, "a clip that does not change stays a clip now"
assert len(timeless["timeless.gif"]) == 3 and len(timeless["timeless.png"]) == 6
PY
