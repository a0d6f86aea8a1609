"""Replicas are killed (SIGKILL) under three jobs that follow objects: every mask is that of an undisturbed run."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from deployments.client import Client
from harness.videos import mp4, squares
from harness.weights import random_model, save_checkpoint
from tests.cluster import nodes

pytestmark = pytest.mark.timeout(600)

OWN = "tests/fine-tuned"
MODEL = f"Sam2Model:{OWN}"
CONFIG = Path(__file__).parents[2] / "deployments" / "model" / "demo" / "sam2_demo.yaml"
FRONT: dict[str, Any] = {"num_cpus": 0, "resources": {"front": 100}}
BACK: dict[str, Any] = {"num_cpus": 0, "resources": {"back": 2}}

COUNT = 6
PROMPTS = [
    {"object_id": 1, "frame_index": 0, "point_coords": [[25, 60]], "point_labels": [1]},
    {"object_id": 2, "frame_index": 2, "box": [90, 20, 110, 100]},
    {"object_id": 1, "frame_index": 4, "point_coords": [[35, 60]], "point_labels": [0]},
]
VIDEOS = [mp4(squares(COUNT, seed=seed)) for seed in range(3)]

Frame = tuple[int, list[tuple[int, float, Any]]]

Job = Callable[["Running", bytes], list[Frame]]


@dataclass
class Running:
    """The service, and what its jobs answer undisturbed."""

    url: str
    cluster: Any
    expected: list[list[Frame]]


def over_http(service: Running, video: bytes) -> list[Frame]:
    """The frames of an answer: their indices, and each object's id, score and mask."""
    parts = [("prompts", (None, orjson.dumps(PROMPTS))), ("video", ("clip.mp4", video))]
    with httpx.Client(base_url=service.url, timeout=300) as client:
        answer = client.post("/segment-anything-2/video", files=parts)
    assert answer.status_code == 200, answer.text[:500]
    _, *frames, last = [orjson.loads(line) for line in answer.text.splitlines()]
    assert last == {"done": True, "frames": COUNT}
    return [
        (frame["frame_index"], [(one["object_id"], one["score"], one["segmentation"]) for one in frame["objects"]])
        for frame in frames
    ]


def by_client(service: Running, video: bytes) -> list[Frame]:
    """The frames that our client gives."""
    with Client(service.url, timeout=300) as client:
        return [
            (frame.frame_index, [(one.object_id, one.score, one.segmentation) for one in frame.objects])
            for frame in client.track(client.video(video), prompts=PROMPTS)
        ]


JOBS: dict[str, Job] = {"HTTP": over_http, "client": by_client}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    checkpoint = save_checkpoint(random_model(CONFIG, seed=7), tmp_path_factory.mktemp("weights") / "own.pt")
    front = {"num_cpus": 0, "resources": {"front": 1}}
    parser = {**front, "runtime_env": {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}}}
    model = {"model_id": OWN, "checkpoint": str(checkpoint), "config": str(CONFIG)}
    document = nodes.service_document(
        [{**model, "torch_threads": 1, "precision": "float32"}],
        [
            {"name": "RequestParser", "num_replicas": 2, "ray_actor_options": parser},
            {"name": "ResponseEncoder", "num_replicas": 2, "ray_actor_options": front},
            {"name": "VideoReader", "num_replicas": 2, "ray_actor_options": front},
            {
                "name": MODEL,
                "autoscaling_config": {"min_replicas": 2, "max_replicas": 2},
                "ray_actor_options": {"num_cpus": 0, "resources": {"back": 1}},
            },
        ],
    )
    with nodes.several_nodes([FRONT, BACK, BACK]) as cluster:
        running = Running(nodes.deploy(document), cluster, [])
        running.expected = at_once(running, over_http)
        yield running


def at_once(service: Running, job: Job) -> list[list[Frame]]:
    """What three jobs at a time give."""
    with ThreadPoolExecutor(len(VIDEOS)) as pool:
        return list(pool.map(lambda video: job(service, video), VIDEOS))


def kill(deployment: str, count: int = 1) -> None:
    """Kills replicas of a deployment."""
    killed = nodes.replicas(deployment)[:count]
    assert killed
    for replica in killed:
        assert replica.pid is not None
        os.kill(replica.pid, signal.SIGKILL)


def kill_across() -> None:
    """Kills a model replica, and all readers and encoders."""
    kill(MODEL)
    kill("VideoReader", 2)
    kill("ResponseEncoder", 2)


def whole(timeout_s: float = 120) -> None:
    """Waits until everything that a fault took is back."""
    wanted = {MODEL: 2, "RequestParser": 2, "ResponseEncoder": 2, "VideoReader": 2}
    deadline = time.monotonic() + timeout_s
    while {name: len(nodes.replicas(name)) for name in wanted} != wanted:
        assert time.monotonic() < deadline, {name: nodes.replicas(name) for name in wanted}
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("act", "asked_by"),
    [
        pytest.param(lambda: kill(MODEL, 2), "HTTP", id="both model replicas", marks=pytest.mark.long),
        pytest.param(kill_across, "HTTP", id="a model replica, all readers and encoders"),
        pytest.param(lambda: kill("RequestParser"), "client", id="a parser, our client"),
    ],
)
def test_no_mask_is_lost_or_changed_where_it_dies(service: Running, act: Callable[[], None], asked_by: str) -> None:
    whole()
    killer = threading.Timer(4.0, act)
    killer.start()
    found = at_once(service, JOBS[asked_by])
    # Not after the jobs.
    assert not killer.is_alive()
    for frames, expected in zip(found, service.expected, strict=True):
        assert frames == expected
