#!/usr/bin/env bash
# PyAV: of a fragmented mp4, `stream.frames` counts the first fragment and looks like the whole
#
# One expects:   PyAV's documentation says of `Stream.frames`: the number of frames the stream contains, 0 if it is
#                not known. So a number that is not 0 is the number of frames.
# What happens:  a file that was written with `frag_keyframe` alone (so that a recording survives a lost power supply)
#                has its first fragment in the ordinary index and all others behind it. `stream.frames` is then the
#                number of frames up to the second key frame, for ever: it is as wrong after decoding as before. The
#                durations of stream and container are right. Written with `empty_moov`, it is 0.
# Who meets it:  anybody who takes the number of frames from the file, to show progress, to check a limit before
#                decoding, or to give SAM 2's tracker the length of the clip. Compare it with duration × rate, or
#                count packets.
# Versions:      PyAV 18.1.0 (its own FFmpeg), numpy 2.4.6
# Source:        FFmpeg `libavformat/mov.c`, mov_build_index (`nb_frames` is the sample count of the moov box;
#                fragments do not add to it); PyAV `av/stream.py`, Stream.frames
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q av==18.1.0 numpy==2.4.6
venv/bin/python - <<'PY'
import av
import numpy as np

print("PyAV", av.__version__, "libavformat", av.library_versions["libavformat"])


def counts(flags):
    """Writes 30 frames, a key frame every 10, and returns what the file says and how many frames come out."""
    with av.open("clip.mp4", "w", options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"g": "10", "sc_threshold": "0", "bf": "0"}
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index * 8, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open("clip.mp4") as container:
        stream = container.streams.video[0]
        before, seconds = stream.frames, float(stream.duration * stream.time_base)
        decoded = sum(1 for _ in container.decode(stream))
        return {"frames": before, "seconds": seconds, "decoded": decoded, "frames afterwards": stream.frames}


seen = {flags: counts(flags) for flags in ("", "frag_keyframe", "frag_keyframe+empty_moov")}
for flags, numbers in seen.items():
    print(f"{flags or 'not fragmented'}: {numbers}")

assert all(numbers["decoded"] == 30 and numbers["seconds"] == 3.0 for numbers in seen.values())
assert seen[""]["frames"] == 30
assert seen["frag_keyframe"]["frames"] == seen["frag_keyframe"]["frames afterwards"] == 10, "all are counted now"
assert seen["frag_keyframe+empty_moov"]["frames"] == 0
PY
