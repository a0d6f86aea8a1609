#!/usr/bin/env bash
# PyAV: label numbers in a lossless video are merged, also when its pixel format is gray
#
# One expects:   a label image (`uint8`, one number for each object) that is written with a lossless codec comes back
#                as it was: losslessness is what one pays the bytes for.
# What happens:  the codec loses nothing, the conversion before or behind it does. `gray` is full range to FFmpeg,
#                `yuv420p` limited: 256 numbers are squeezed into 220, so 3 and 4 both come back as 3. With
#                `pix_fmt = "gray"` libx264 does store all 256 numbers, but its file is decoded as `yuv420p` and then
#                stretched, with all numbers from 0 to 16 becoming 0. FFV1 as `gray` and x264 as `yuvj420p` are true.
# Who meets it:  anybody who stores masks of several objects as a lossless mp4, and finds two objects with one number.
#                A clip with 0 and 255 alone shows nothing of it. Reading the first plane of the `gray` file's frames
#                gives the numbers too.
# Versions:      PyAV 18.1.0 (its own FFmpeg), numpy 2.4.6
# Source:        PyAV `av/video/frame.py`, VideoFrame.to_ndarray, and `av/video/reformatter.py`; FFmpeg
#                `libswscale/utils.c` (handle_jpeg: gray is full range), `libavcodec/h264_slice.c`, get_pixel_format
#                (gray only if built for it, else yuv420p)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q av==18.1.0 numpy==2.4.6
venv/bin/python - <<'PY'
import av
import numpy as np

print("PyAV", av.__version__, "libswscale", av.library_versions["libswscale"])
labels = np.arange(256, dtype=np.uint8).reshape(16, 16)


def read_back(codec, pixel_format, options):
    """Returns the format that is decoded, the labels as `to_ndarray` gives them, and the frame's first plane."""
    with av.open("labels.mkv", "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 16, 16, pixel_format, options
        container.mux(stream.encode(av.VideoFrame.from_ndarray(labels, format="gray")))
        container.mux(stream.encode())
    with av.open("labels.mkv") as container:
        frame = next(container.decode(video=0))
        plane = np.frombuffer(bytes(frame.planes[0]), np.uint8).reshape(16, -1)[:, :16]
        return frame.format.name, frame.to_ndarray(format="gray"), plane


seen = {}
for codec, pixel_format, options in (
    ("libx264", "yuv420p", {"qp": "0"}),
    ("libx264", "gray", {"qp": "0"}),
    ("libx264", "yuvj420p", {"qp": "0"}),
    ("ffv1", "yuv420p", {}),
    ("ffv1", "gray", {}),
):
    decoded, array, plane = seen[codec, pixel_format] = read_back(codec, pixel_format, options)
    print(
        f"{codec} {pixel_format}: decoded as {decoded}, {len(np.unique(array))} of 256 labels left,",
        f"labels 0 to 5 are {array[0, :6].tolist()}; in the first plane {len(np.unique(plane))}",
    )

for name in ("libx264", "ffv1"):
    assert len(np.unique(seen[name, "yuv420p"][1])) == 220, "labels survive yuv420p now"
assert seen["libx264", "yuv420p"][1][0, 3] == seen["libx264", "yuv420p"][1][0, 4]
assert len(np.unique(seen["libx264", "gray"][1])) == 220, "libx264's gray is read as gray now"
assert (seen["libx264", "gray"][1].ravel()[:17] == 0).all()
assert (seen["libx264", "gray"][2] == labels).all()
assert (seen["libx264", "yuvj420p"][1] == labels).all() and (seen["ffv1", "gray"][1] == labels).all()
PY
