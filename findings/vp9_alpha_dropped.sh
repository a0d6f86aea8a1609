#!/usr/bin/env bash
# PyAV: a transparent WebM is decoded without its alpha channel
#
# One expects:   a cut-out or a soft mask that was written as VP9 with `yuva420p` comes back with its alpha channel,
#                as the same picture does from PNG, WebP or ProRes, and as browsers show it.
# What happens:  the stream says `yuv420p`, each frame is opaque, and there is no warning: what lies under the
#                transparent pixels is shown. A WebM file keeps alpha as a second picture beside each packet. PyAV takes
#                FFmpeg's own decoder `vp9`, which ignores that; `libvpx-vp9`, which is in PyAV's wheel too, reads it.
#                The only hint is `stream.metadata["alpha_mode"] == "1"`.
# Who meets it:  anybody who keeps masks as transparent video (what editors and browsers take) or lets users upload
#                such clips. Decode the packets with `av.CodecContext.create("libvpx-vp9", "r")`.
# Versions:      PyAV 18.1.0 (its own FFmpeg), numpy 2.4.6
# Source:        FFmpeg `libavcodec/libvpxdec.c`, vpx_decode (reads the side data "BlockAdditional"; `vp9.c` does not)
#                and `allcodecs.c` (the native decoder is first in the list); PyAV `av/codec/context.py`,
#                CodecContext.create
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q av==18.1.0 numpy==2.4.6
venv/bin/python - <<'PY'
import av
import numpy as np

print("PyAV", av.__version__, "libavcodec", av.library_versions["libavcodec"])

cutout = np.zeros((64, 64, 4), np.uint8)
cutout[..., 0] = 200
cutout[16:48, 16:48, 3] = 255  # the object; all around it is transparent
with av.open("cutout.webm", "w") as container:
    stream = container.add_stream("libvpx-vp9", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuva420p"
    stream.options = {"lossless": "1", "auto-alt-ref": "0"}
    for _ in range(3):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(cutout, format="rgba")))
    container.mux(stream.encode())


def shown(frame):
    """Returns a frame's format and how many of its pixels are opaque."""
    return frame.format.name, int((frame.to_ndarray(format="rgba")[..., 3] == 255).sum())


with av.open("cutout.webm") as container:
    stream = container.streams.video[0]
    print("decoder", stream.codec_context.codec.name, "- alpha_mode:", stream.metadata.get("alpha_mode"))
    by_default = [shown(frame) for frame in container.decode(stream)]
decoder = av.CodecContext.create("libvpx-vp9", "r")
with av.open("cutout.webm") as container:
    by_libvpx = [shown(frame) for packet in container.demux(video=0) for frame in decoder.decode(packet)]
print("the object has", 32 * 32, "pixels of", 64 * 64)
print("container.decode():", by_default)
print("libvpx-vp9:        ", by_libvpx)

assert by_libvpx == [("yuva420p", 1024)] * 3
assert by_default == [("yuv420p", 4096)] * 3, "alpha is decoded by default now"
PY
