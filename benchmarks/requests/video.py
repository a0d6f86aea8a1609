"""Objects followed through a video over HTTP, against SAM 2's own video predictor in its own process, without HTTP.

Ours decodes an mp4, and writes masks as RLE; the predictor is handed frames that are decoded and resized already. Both
run the image encoder for each frame. The video is followed again for another object, and beside somebody's clicks.
"""

import os
import threading
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import orjson
import ray

from benchmarks.model.tracking import FULL, SIZE, Peer, click
from benchmarks.model.tracking import clip as moving
from benchmarks.report import Findings, Row, Spread, budget_row
from benchmarks.servers import Server, local_service
from benchmarks.workplace import Configuration, Workplace
from deployments.messages.track import TrackPrompt
from harness.exported import scrape
from harness.images import noise
from harness.load import TIMEOUT_S, point_request, send
from harness.videos import mp4
from tuning.tables import Table

ROUTE = "/segment-anything-2/video"
CLICKS = 12


@dataclass
class Timed:
    """Seconds of each frame past those that fill the memory, and of the first line and frame."""

    frames_s: list[float]
    first_line_s: float = 0.0
    first_frame_s: float = 0.0

    @property
    def median(self) -> float:
        """Seconds of a frame."""
        return float(np.median(self.frames_s))


def run(workplace: Workplace) -> Findings:
    """Measures hiera-tiny with one object and with eight."""
    rows, lines, data = [], [], {}
    weights = {"HF_HUB_CACHE": str(workplace.hub_cache), "HF_HUB_OFFLINE": "1"}
    with patch.dict(os.environ, weights), local_service(Configuration()) as server:
        follow(server, mp4(moving(2)), [click(0)])
        for objects, measured in ((1, 2), (8, 2)) if workplace.quick else ((1, 12), (8, 3)):
            frames = moving(FULL + measured)
            prompts = [click(number) for number in range(objects)]
            video = mp4(frames, rate=30)
            ours = follow(server, video, prompts)
            theirs = peer(frames, prompts)
            ratio = theirs.median / ours.median
            spread = Spread.of([theirs.median / one for one in ours.frames_s])
            note = f"first line {ours.first_line_s:.2f} s, first frame {ours.first_frame_s:.2f} s after the request"
            rows.append(_row(f"video {objects}", ratio, workplace.precision, note, spread))
            lines.append([str(objects), f"{theirs.median:.3g}", f"{ours.median:.3g}", note])
            data[str(objects)] = {"predictor_s": theirs.frames_s, "service_s": ours.frames_s}
            if objects == 1:
                again = encoder_runs(server, video)
                rows.append(budget_row("video again", again, workplace.precision, note=f"{len(frames)} frames"))
                idle, beside = clicks(server, mp4(moving(40), rate=30))
                slower = Spread.of([one / float(np.median(idle)) for one in beside])
                rows.append(_row("video click", slower.median, workplace.precision, "remembered image, RLE", slower))
                data["clicks"] = {"idle_s": idle, "beside_s": beside}
    columns = ("objects", "predictor, s a frame", "service, s a frame", "service")
    title = f"A video over HTTP, hiera-tiny, {SIZE[0]}×{SIZE[1]}, encoder, decoding and RLE included"
    return Findings(rows, [Table(title, columns, lines)], data)


def _row(budget: str, measured: float, precision: str, note: str, spread: Spread) -> Row:
    row = budget_row(budget, measured, precision, note=note)
    return Row(row.name, row.measured, precision, row.unit, budget, spread, note)


def follow(server: Server, video: bytes, prompts: list[TrackPrompt]) -> Timed:
    """Follows objects from the first frame to the last."""
    started = time.perf_counter()
    timed = Timed([])
    before = started
    for line in lines_of(server, video, prompts):
        now = time.perf_counter()
        if "video_id" in line:
            timed.first_line_s = now - started
        elif line.get("frame_index") == 0:
            timed.first_frame_s = now - started
        elif line.get("frame_index", 0) >= FULL:
            timed.frames_s.append(now - before)
        before = now
    return timed


def lines_of(server: Server, video: bytes, prompts: list[TrackPrompt]) -> Generator[dict[str, Any], None, None]:
    """Yields the lines of an answer.

    Raises:
        RuntimeError: it ended with an error.
    """
    values = [
        {
            "object_id": one.object_id,
            "frame_index": one.frame_index,
            "point_coords": one.prompt.point_coords.tolist(),
            "point_labels": one.prompt.point_labels.tolist(),
        }
        for one in prompts
        if one.prompt is not None and one.prompt.point_coords is not None and one.prompt.point_labels is not None
    ]
    parts = [("prompts", (None, orjson.dumps(values))), ("video", ("clip.mp4", video))]
    with (
        httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client,
        client.stream("POST", ROUTE, files=parts) as response,
    ):
        for text in response.iter_lines():
            line = orjson.loads(text)
            if "error" in line or "detail" in line:
                raise RuntimeError(f"the job failed: {text}")
            yield line


def peer(frames: list[Any], prompts: list[TrackPrompt]) -> Timed:
    """The same with SAM2VideoPredictor, in this process."""
    predictor = Peer(frames, prompts)
    predictor.advance(FULL)
    return Timed([predictor.advance(1) for _ in frames[FULL:]])


def encoder_runs(server: Server, video: bytes) -> float:
    """How often the encoder runs for a new object in a video that was followed just now."""
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    url = f"http://127.0.0.1:{nodes[0]['MetricsExportPort']}/metrics"

    def runs() -> float:
        # Ray exports what is counted every ten seconds.
        time.sleep(12)
        return scrape(url).total("ray_sam2_embedding_cache_misses_total")

    before = runs()
    follow(server, video, [click(3)])
    return runs() - before


def clicks(server: Server, video: bytes) -> tuple[list[float], list[float]]:
    """Seconds of clicks on a remembered image, when nothing else runs and beside a job."""
    size = (640, 480)
    image = noise(*size, 5)

    def timed(first: int) -> list[float]:
        found = []
        with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
            for number in range(first, first + CLICKS):
                request = point_request(image, size, number, response_format="rle")
                started = time.perf_counter()
                if not send(client, request).ok:
                    raise RuntimeError("a click failed")
                found.append(time.perf_counter() - started)
        return found[2:]

    idle = timed(0)
    ready, ended = threading.Event(), threading.Event()

    def job() -> None:
        with closing(lines_of(server, video, [click(0)])) as lines:
            for line in lines:
                if line.get("frame_index", 0) >= 3:
                    ready.set()
                if ended.is_set():
                    return

    worker = threading.Thread(target=job)
    worker.start()
    ready.wait(300)
    beside = timed(100)
    ended.set()
    worker.join()
    return idle, beside
