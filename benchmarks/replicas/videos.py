"""Jobs that follow objects, with a model that only waits: how throughput grows with replicas, and their memory.

The model answers masks and states as large as SAM 2's; reading, parser, router and encoders are the project's own.
"""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import orjson

from benchmarks.replicas.waiting_model import WaitingModel, full_masks, full_state
from benchmarks.report import Findings, Row, budget_row
from benchmarks.servers import Server, deploy, local_service
from benchmarks.workplace import TINY, Configuration, Workplace
from deployments.messages.track import TrackedFrames
from deployments.parsing.video.job import STATE_EVERY
from harness.load import TIMEOUT_S
from harness.processes import Growth, MemorySampler, idle_memory
from harness.videos import mp4, squares
from tuning.tables import Table

NO_ARITHMETIC = "none (waits)"
ROUTE = "/segment-anything-2/video"
REPLICAS = 10
JOBS_PER_REPLICA = 2
SIZE = (96, 128)

THIS_PROCESS = "python"
"""The role of the benchmark's own process in a sample of memory."""

SLOW = Configuration(
    TINY, import_path="benchmarks.replicas.waiting_model:build", parser={"user_config": {"max_video_jobs": 64}}
)
QUICK = replace(SLOW, import_path="benchmarks.replicas.waiting_model:build_quick")


def run(workplace: Workplace) -> Findings:
    """Measures one replica and ten, then 300 frames and 3,000."""
    seconds = 10.0 if workplace.quick else 40.0
    many = 3 if workplace.quick else REPLICAS
    rates = {}
    with local_service(SLOW) as server:
        for replicas in (1, many):
            deploy(server, replace(SLOW, replicas=replicas))
            rates[replicas] = frames_per_second(server, JOBS_PER_REPLICA * replicas, seconds)
            print(f"  {replicas} replicas: {rates[replicas]:.2f} frames/s", flush=True)
    efficiency = rates[many] / (many * rates[1])
    note = f"{many} replicas that wait {WaitingModel.frame_s:g} s a frame, {JOBS_PER_REPLICA * many} jobs"
    rows = [
        budget_row("video scaling", efficiency, NO_ARITHMETIC, note=note)
        if many == REPLICAS
        else Row("video: throughput, of linear growth", efficiency, NO_ARITHMETIC, note=note)
    ]
    with local_service(QUICK) as server:
        counts = (100, 300) if workplace.quick else (300, 3000)
        # What is imported and allocated once for all belongs to idle.
        follow(server, clip(100))
        growths = {count: growth(server, count) for count in counts}
    short, long = (growths[count].total for count in counts)
    rows.append(budget_row("video memory", long - short, NO_ARITHMETIC, note=f"{counts[1]} frames less {counts[0]}"))
    rows.append(budget_row("video parser", parser_megabytes(), NO_ARITHMETIC, note="what a model answers, pickled"))
    rows.append(budget_row("video state", full_state([1]).nbytes / 1e6, NO_ARITHMETIC, note="one frame with a prompt"))
    lines = [[str(count), f"{one.total:,.0f}", str(one)] for count, one in growths.items()]
    table = Table("Memory of all processes above idle while a video is followed", ("frames", "MB", "where, MB"), lines)
    data = {"frames_per_second": rates, "growth": {str(count): one.by_role for count, one in growths.items()}}
    return Findings(rows, [table], data)


def clip(count: int, seed: int = 0) -> bytes:
    """A clip whose file differs from those of other seeds."""
    return mp4(squares(count, *SIZE, seed=seed), rate=30)


def follow(server: Server, video: bytes, stop_at: float = float("inf"), start_at: float = 0.0) -> int:
    """Follows one object; returns how many frames were answered between two times of `time.perf_counter()`.

    Raises:
        RuntimeError: the answer ended with an error.
    """
    parts: list[Any] = [
        ("box", (None, "[10,10,60,60]")),
        ("response_format", (None, "none")),
        ("video", ("clip.mp4", video)),
    ]
    counted = 0
    with (
        httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client,
        client.stream("POST", ROUTE, files=parts) as response,
    ):
        for line in response.iter_lines():
            now = time.perf_counter()
            if now > stop_at:
                break
            one = orjson.loads(line)
            if "error" in one or "detail" in one:
                raise RuntimeError(f"a job failed: {line}")
            counted += "frame_index" in one and now >= start_at
    return counted


def frames_per_second(server: Server, jobs: int, seconds: float) -> float:
    """Frames per second of jobs that all run for as long as is measured."""
    videos = [clip(400, seed) for seed in range(jobs)]
    begin = time.perf_counter() + 10.0
    counts: list[int] = []
    lock = threading.Lock()

    def job(video: bytes) -> None:
        count = follow(server, video, begin + seconds, begin)
        with lock:
            counts.append(count)

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(job, video) for video in videos]:
            future.result()
    return sum(counts) / seconds


def growth(server: Server, count: int) -> Growth:
    """How much memory the service takes at the peak while a video of so many frames is followed.

    Without this process, which made the clip and reads the answer.
    """
    video = clip(count, seed=count)
    idle = idle_memory(server.tree)
    with MemorySampler(server.tree) as sampler:
        if follow(server, video) != count:
            raise RuntimeError("frames are missing")
    peak = max((_service(sample) for sample in sampler.samples), key=lambda sample: sum(sample.values()))
    return Growth.between(_service(idle), peak)


def _service(sample: dict[str, int]) -> dict[str, int]:
    return {role: nbytes for role, nbytes in sample.items() if role != THIS_PROCESS}


def parser_megabytes() -> float:
    """MB that RequestParser gets from a model for each frame of one object, without a fault."""
    masks = tuple(full_masks(index, [1], (720, 1280)) for index in range(STATE_EVERY))
    answer = TrackedFrames(masks, STATE_EVERY, full_state([1]))
    return len(pickle.dumps(answer, protocol=5)) / STATE_EVERY / 1e6
