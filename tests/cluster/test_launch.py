"""`python -m deployments` from its start to its end: progress, the seed's curl, a deploy that fails, a clean stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
from PIL import Image

from harness.serve import free_port, local_config

ROOT = Path(__file__).parents[2]
DEMO_FOLDER = ROOT / "deployments" / "model" / "demo"


def _outside_of_this_service() -> dict[str, str]:
    """The environment without the ports that the shared service chose for its own HAProxy."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_HAPROXY_")}


@contextmanager
def launched(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The launcher as a process of its own; stopped at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments", *arguments],
        cwd=ROOT,
        env={**_outside_of_this_service(), "RAY_worker_niceness": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def lines_until(process: subprocess.Popen[str], start: str) -> list[str]:
    """What the launcher prints, up to the line that starts so."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith(start):
            return lines
    assert process.stderr
    raise AssertionError(f"never said {start!r}: {lines} {process.stderr.read()}")


def last_words(process: subprocess.Popen[str]) -> str:
    """The last line on standard error of a launcher that must fail by itself."""
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1
    return error.strip().splitlines()[-1]


@dataclass(frozen=True)
class Launchers:
    """Two that were started together, since each start is mostly waiting: for the tests after them to go on."""

    serving: subprocess.Popen[str]
    url: str
    failing: subprocess.Popen[str]
    """Its model cannot be loaded."""


@pytest.fixture(scope="module", autouse=True)
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launchers]:
    """Started before the first of these tests; those that need them come last.

    One after the other, and the tests after both, until Ray is there: it gives a node only 30 s to start.
    """
    folder = tmp_path_factory.mktemp("failing")
    own = {"model_id": "mine", "checkpoint": str(folder / "gone.pt"), "config": str(DEMO_FOLDER / "sam2_demo.yaml")}
    config = local_config(folder / "config.yaml", models=[own])
    port = free_port()
    # Its own, lest two launchers that look for free ones at the same time find the same.
    ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    with launched("--port", str(port), AUTH_TOKEN="let-me-in") as serving:
        lines_until(serving, "[")
        with launched("--config", config, "--port", str(free_port()), **ports) as failing:
            lines_until(failing, "[")
            yield Launchers(serving, f"http://127.0.0.1:{port}", failing)


def test_a_deploy_that_fails_ends_with_the_cause_and_exit_code_1(launchers: Launchers) -> None:
    error = last_words(launchers.failing)
    assert "mine" in error
    assert "no such file" in error


def test_from_launch_to_the_seeds_curl_and_a_clean_stop(launchers: Launchers) -> None:
    process, url = launchers.serving, launchers.url
    said = lines_until(process, "ready:")
    assert any("sam2-demo: loading" in line for line in said), said
    curl = [
        *("curl", "-s", "-X", "POST", f"{url}/segment-anything-2", "-H", "Authorization: Bearer let-me-in"),
        *("-F", "point_coords=[[120,100],[120,50]]", "-F", "point_labels=[1,0]"),
        *("-F", f"image=@{DEMO_FOLDER / 'example.png'}"),
    ]
    answer = orjson.loads(subprocess.run(curl, check=True, capture_output=True).stdout)
    width, height = Image.open(DEMO_FOLDER / "example.png").size
    assert np.array(orjson.loads(answer["masks"])).shape == (3, height, width)

    refused = httpx.post(f"{url}/segment-anything-2", headers={"Authorization": "Bearer wrong"})
    assert refused.status_code == 401
    assert refused.json()["detail"]["msg"] == "Authorization: the bearer token is missing or wrong"
    assert httpx.get(f"{url}/models").status_code == 401
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert httpx.get(f"{url}{path}").status_code == 200, path

    with ThreadPoolExecutor(1) as pool:
        # Some seconds of work.
        everything = pool.submit(
            httpx.post,
            f"{url}/segment-anything-2/auto",
            data={"points_per_side": "12"},
            files={"image": (DEMO_FOLDER / "example.png").read_bytes()},
            headers={"Authorization": "Bearer let-me-in"},
            timeout=100,
        )
        time.sleep(1)
        assert not everything.done()
        # As `docker stop` does; Ctrl-C is handled by the same lines.
        process.send_signal(signal.SIGTERM)
        lines_until(process, "stopped")
        # What was under way is answered whole.
        assert everything.result().status_code == 200
        assert "masks" in everything.result().json()
    assert process.wait(60) == 0
