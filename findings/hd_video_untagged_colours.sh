#!/usr/bin/env bash
# PyAV: a video without colour tags is converted with the matrix of standard definition, whatever its size
#
# One expects:   `frame.to_ndarray(format="rgb24")` gives the colours that a player shows, and a player takes BT.709
#                for untagged HD video, BT.601 for smaller pictures.
# What happens:  FFmpeg's swscale, which PyAV calls, takes BT.601 for every untagged frame, at 1920×1080 too. Pure red
#                comes out 22 levels too dark, greens shift likewise. With the tag in the file the colours are right.
# Who meets it:  anybody who compares frames from a file with those of a screen or camera, or trains on one and runs
#                on the other; screen recorders and many encoders (PyAV's own default too) write no tag. For untagged
#                frames of 720 lines and more: `frame.to_ndarray(format="rgb24", src_colorspace="ITU709")`.
# Versions:      PyAV 18.1.0 (its own FFmpeg), numpy 2.4.6
# Source:        PyAV `av/video/reformatter.py`, VideoReformatter.reformat (src_colorspace defaults to the frame's
#                own, here "unspecified"); FFmpeg `libswscale/yuv2rgb.c`, ff_yuv2rgb_coeffs (the row of "unspecified"
#                equals that of BT.601)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q av==18.1.0 numpy==2.4.6
venv/bin/python - <<'PY'
import av
from av.video.reformatter import Colorspace

print("PyAV", av.__version__, "libswscale", av.library_versions["libswscale"])

RED_IN_BT709 = (63, 102, 240)  # Y, U and V of (255, 0, 0), limited range


def red(tagged, **options):
    """Returns the RGB values of a red 1920×1080 frame that went through a lossless mp4."""
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 1920, 1080, "yuv420p", {"crf": "0"}
        frame = av.VideoFrame(1920, 1080, "yuv420p")
        for plane, value in zip(frame.planes, RED_IN_BT709):
            plane.update(bytes([value]) * plane.buffer_size)
        if tagged:
            stream.codec_context.colorspace = frame.colorspace = Colorspace.ITU709
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open("clip.mp4") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24", **options)[0, 0].tolist()


tagged, untagged, told = red(True), red(False), red(False, src_colorspace="ITU709")
print("red, BT.709 tag in the file:", tagged)
print("red, no tag:", untagged)
print("red, no tag, src_colorspace='ITU709':", told)

assert tagged[0] >= 253 and told[0] >= 253
assert 228 <= untagged[0] <= 236, "untagged HD video is taken for BT.709 now"
PY
