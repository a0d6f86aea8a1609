"""Damaged files of every kind, sent for minutes to a service that runs: `python -m tests.fuzz URL --minutes 20`.

Every answer must be one of a working service: a mask, or a 4xx that says why not. It fails if there was another, if a
replica was replaced, or if undamaged files are not answered at the end.
"""

import argparse
import io
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import imagecodecs
import numpy as np
import pillow_heif
import psutil
import tifffile
from PIL import Image

from harness.images import encoded, picture
from harness.videos import mp4, squares
from tests.unit.test_camera_raw import dng
from tests.unit.test_dicom import data_set, written

pillow_heif.register_heif_opener()

WIDTH, HEIGHT = 61, 47
HEAD_BYTES = 400
"""Half of the damage is done here, where most formats say what comes."""


def tiff(samples: Any, **options: Any) -> bytes:
    """A TIFF file of the samples."""
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


def _encoded(encode: Callable[..., bytes | bytearray], samples: Any, **options: Any) -> bytes:
    return bytes(encode(samples, **options))


def images() -> dict[str, bytes]:
    """A file of each kind, by its name; all of them are read when they are whole."""
    rgb = picture(WIDTH, HEIGHT, seed=3)
    pixels = np.asarray(rgb)
    deep = (pixels[:, :, 0].astype(np.uint16) * 16) + 5
    four = np.dstack([deep] * 4)
    frames = [picture(WIDTH, HEIGHT, seed=seed) for seed in range(3)]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 100}
    return {
        "jpeg": encoded(rgb, "JPEG"),
        "progressive jpeg": encoded(rgb, "JPEG", progressive=True),
        "cmyk jpeg": encoded(rgb.convert("CMYK"), "JPEG"),
        "png": encoded(rgb),
        "palette png": encoded(rgb.quantize(16)),
        "16-bit png": _encoded(imagecodecs.png_encode, deep),
        "apng": encoded(frames[0], "PNG", **animated),
        "gif": encoded(frames[0], "GIF", **animated),
        "webp": encoded(rgb, "WEBP"),
        "animated webp": encoded(frames[0], "WEBP", **animated),
        "bmp": encoded(rgb, "BMP"),
        "tga": encoded(rgb, "TGA"),
        "ppm": encoded(rgb, "PPM"),
        "jpeg 2000": encoded(rgb, "JPEG2000"),
        "heic": encoded(rgb, "HEIF"),
        "avif": encoded(rgb, "AVIF"),
        "jpeg xl": _encoded(imagecodecs.jpegxl_encode, pixels),
        "12-bit jpeg": _encoded(imagecodecs.jpeg_encode, deep, bitspersample=12),
        "lossless jpeg": _encoded(imagecodecs.ljpeg_encode, deep),
        "tiff": tiff(pixels),
        "tiled deflate tiff": tiff(four, tile=(16, 16), compression="deflate", predictor=True),
        "lzw tiff": tiff(deep, compression="lzw"),
        "zstd float tiff": tiff(deep.astype(np.float32), compression="zstd"),
        "jpeg tiff": tiff(pixels, compression="jpeg"),
        "bigtiff": tiff(deep, bigtiff=True),
        "stack": tiff(np.stack([deep] * 3), photometric="minisblack"),
        "ome": tiff(np.stack([deep] * 3), ome=True, photometric="minisblack"),
        "dicom": written(data_set(deep)),
        "dng": dng(),
    }


def videos() -> dict[str, bytes]:
    """A file of each kind, by its name."""
    clip = squares(4)
    frames = [Image.fromarray(frame) for frame in clip]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 100}
    return {
        "mp4": mp4(clip),
        "animated avif as video": encoded(frames[0], "AVIF", **animated),
        "gif as video": encoded(frames[0], "GIF", **animated),
        "stack as video": tiff(np.stack(clip)),
    }


def damaged(data: bytes, dice: random.Random) -> bytes:
    """A copy of the file with one kind of damage."""
    copy = bytearray(data)
    reach = min(HEAD_BYTES, len(copy)) if dice.random() < 0.5 else len(copy)
    at = dice.randrange(reach)
    kind = dice.randrange(6)
    if kind == 0:
        del copy[at:]
    elif kind == 1:
        for _ in range(dice.choice([1, 1, 2, 8, 40])):
            copy[dice.randrange(reach)] = dice.randrange(256)
    elif kind == 2:
        # Where a length, a count or an offset stands, these are its extremes.
        size = dice.choice([1, 2, 4, 8])
        copy[at : at + size] = dice.choice([b"\xff", b"\0", b"\x7f", b"\x80"]) * size
    elif kind == 3:
        del copy[at : at + dice.choice([1, 2, 16, 200])]
    elif kind == 4:
        copy[at:at] = copy[at : at + dice.choice([1, 2, 16, 200])]
    else:
        copy[at] ^= 1 << dice.randrange(8)
    return bytes(copy)


def ask(client: httpx.Client, name: str, data: bytes) -> httpx.Response:
    """Sends a file with a click, or as a video to be kept."""
    if name in VIDEOS:
        return client.post("/segment-anything-2/video/embed", files={"video": ("v", data)})
    fields = {"point_coords": "[[20,20]]", "point_labels": "[1]", "response_format": "rle"}
    return client.post("/segment-anything-2", data=fields, files={"image": ("i", data)})


def replicas() -> set[tuple[int, float]]:
    """Serve's replicas on this machine."""
    found = set()
    for process in psutil.process_iter(["cmdline", "create_time"]):
        if any("ServeReplica" in part for part in process.info["cmdline"] or ()):
            found.add((process.pid, process.info["create_time"]))
    return found


IMAGES, VIDEOS = images(), videos()
FILES = IMAGES | VIDEOS


def main(argv: list[str] | None = None) -> int:
    """Runs it; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("url", help="of the service, on this machine")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    options = parser.parse_args(argv)
    before, statuses, faults = replicas(), Counter[tuple[str, int]](), list[str]()
    until = time.monotonic() + options.minutes * 60

    def work(number: int) -> None:
        dice = random.Random(f"{options.seed} {number}")
        with httpx.Client(base_url=options.url, timeout=120) as client:
            while time.monotonic() < until:
                name = dice.choice(list(FILES))
                try:
                    answer = ask(client, name, damaged(FILES[name], dice))
                except httpx.HTTPError as error:
                    faults.append(f"{name}: no answer: {error!r}")
                    continue
                statuses[name, answer.status_code] += 1
                if answer.status_code not in (200, 400, 413):
                    faults.append(f"{name}: {answer.status_code} {answer.text[:200]}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with httpx.Client(base_url=options.url, timeout=120) as client:
        for name, data in FILES.items():
            answer = ask(client, name, data)
            if answer.status_code != 200:
                faults.append(f"{name}, whole, at the end: {answer.status_code} {answer.text[:200]}")
    if not before:
        faults.append("no replicas were found on this machine")
    if gone := before - replicas():
        faults.append(f"{len(gone)} of {len(before)} replicas are gone")
    _report(statuses, faults, print)
    return bool(faults)


def _report(statuses: Counter[tuple[str, int]], faults: list[str], say: Callable[[str], None]) -> None:
    say(f"{statuses.total()} damaged files: " + _text(Counter({s: 0 for _, s in statuses}), statuses))
    for name in FILES:
        own = {status: count for (kind, status), count in sorted(statuses.items()) if kind == name}
        say(f"  {name}: " + ", ".join(f"{count} × {status}" for status, count in own.items()))
    for fault in faults:
        say(f"FAULT {fault}")


def _text(totals: Counter[int], statuses: Counter[tuple[str, int]]) -> str:
    for (_, status), count in statuses.items():
        totals[status] += count
    return ", ".join(f"{count} × {status}" for status, count in sorted(totals.items()))


if __name__ == "__main__":
    sys.exit(main())
