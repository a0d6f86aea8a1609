#!/usr/bin/env bash
# Pillow and PyAV: frame n of an animated PNG is not the same picture in both
#
# One expects:   two readers that both play animated PNG agree on how many frames a file has and on their order.
# What happens:  an animated PNG may hold a still picture for programs that know no animation (the "default image",
#                which no frame control chunk precedes). It is no part of the animation. PyAV (FFmpeg) leaves it out;
#                Pillow counts it as frame 0, gives it in `n_frames`, and every later frame is one further on. Only
#                `info["default_image"]` tells.
# Who meets it:  anybody who clicks on frame n with one library and tracks or exports with the other: all masks lie on
#                the neighbouring frame, and in Pillow's count the first one shows a placeholder.
# Versions:      Pillow 13.0.0, PyAV 18.1.0 (its own FFmpeg), numpy 2.4.6
# Source:        Pillow `PngImagePlugin.py`, PngImageFile._open (`self.n_frames += 1` for a default image); FFmpeg
#                `libavformat/apngdec.c`, apng_read_packet (only data behind an fcTL chunk)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q Pillow==13.0.0 av==18.1.0 numpy==2.4.6
venv/bin/python - <<'PY'
import av
import PIL
from PIL import Image

print("Pillow", PIL.__version__, "PyAV", av.__version__, "libavformat", av.library_versions["libavformat"])

names = {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue"}
red, green, blue = (Image.new("RGB", (16, 16), colour) for colour in names)
red.save("clip.png", save_all=True, append_images=[green, blue], default_image=True, duration=100)

by_pillow = []
with Image.open("clip.png") as image:
    print("Pillow says: n_frames", image.n_frames, "- default_image", image.info.get("default_image"))
    for index in range(image.n_frames):
        image.seek(index)
        by_pillow.append(names[image.convert("RGB").getpixel((0, 0))])
with av.open("clip.png") as container:
    by_pyav = [names[frame.to_image().getpixel((0, 0))] for frame in container.decode(video=0)]
print("Pillow:", by_pillow)
print("PyAV:  ", by_pyav)

assert by_pillow == ["red", "green", "blue"], by_pillow
assert by_pyav == ["green", "blue"], "the readers count alike now"
PY
