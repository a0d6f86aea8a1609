#!/usr/bin/env bash
# PyAV: the first video stream of an animated AVIF is a still picture
#
# One expects:   `container.decode(video=0)` gives all frames of an animation, as it does for mp4, webm, GIF and
#                animated PNG, or an error where a format is not supported.
# What happens:  one frame, and no error. An AVIF sequence holds its first picture twice: as an image item for viewers
#                of stills, and as a track. FFmpeg makes a stream of each, the item first, and both carry the
#                "default" disposition. The animation is `streams.video[1]`; `streams.best("video")` finds it.
# Who meets it:  anybody who opens pictures and clips with the same two lines, as nearly all PyAV examples do: a
#                six-frame clip is tracked for one frame, and the answer looks complete.
# Versions:      PyAV 18.1.0 (its own FFmpeg), Pillow 13.0.0 (writes the file), numpy 2.4.6
# Source:        FFmpeg `libavformat/mov.c` (a stream for each HEIF item, a stream for each track); PyAV
#                `av/container/streams.py`, StreamContainer.best (av_find_best_stream)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q av==18.1.0 Pillow==13.0.0 numpy==2.4.6
venv/bin/python - <<'PY'
import av
import PIL
from PIL import Image

print("PyAV", av.__version__, "libavformat", av.library_versions["libavformat"], "Pillow", PIL.__version__)

first, *others = (Image.new("RGB", (32, 32), (shade, shade, shade)) for shade in range(0, 240, 40))
first.save("clip.avif", save_all=True, append_images=others, duration=100)
with Image.open("clip.avif") as image:
    print("Pillow: n_frames", image.n_frames)
    frames_of_pillow = image.n_frames


def decoded(choose):
    """Returns the number of frames in the stream that `choose` takes from the container."""
    with av.open("clip.avif") as container:
        return sum(1 for _ in container.decode(choose(container)))


with av.open("clip.avif") as container:
    for stream in container.streams.video:
        print(f"stream {stream.index}: frames {stream.frames}, duration {stream.duration}, {stream.disposition}")
by_number = decoded(lambda container: container.streams.video[0])
by_best = decoded(lambda container: container.streams.best("video"))
print("decode(video=0):", by_number, "frame; the best stream:", by_best, "frames")

assert frames_of_pillow == 6
assert by_number == 1, "the first stream holds the animation now"
assert by_best == 6, by_best
PY
