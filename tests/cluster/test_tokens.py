"""`python -m deployments` with RAY_ADDRESS of a cluster that asks for Ray's token: with it, with another, with none."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from harness.serve import free_port
from tests.cluster.test_launch import ROOT, last_words, launched, lines_until

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]

TOKEN = "0123456789abcdef" * 4

# A process of its own: what it has read of the token, Ray keeps.
HEAD = """
from deployments.environment import prepare_environment
prepare_environment()
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
print(cluster.address, flush=True)
input()
cluster.shutdown()
"""


@contextmanager
def head(home: Path) -> Iterator[str]:
    """The address of a cluster of one node that asks for the token."""
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    environment |= {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        cwd=ROOT,
        env=environment | {"RAY_worker_niceness": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.communicate("\n", timeout=60)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with head(tmp_path_factory.mktemp("head")) as found:
        yield found


@pytest.mark.parametrize(
    ("token", "said"),
    [({}, "asks for its token"), ({"RAY_AUTH_TOKEN": "f" * 64}, "does not take the token")],
    ids=["none", "another"],
)
def test_a_token_that_is_missing_or_wrong_is_said_soon(
    address: str, token: dict[str, str], said: str, tmp_path: Path
) -> None:
    with launched("--port", str(free_port()), RAY_ADDRESS=address, HOME=str(tmp_path), **token) as launcher:
        lines_until(launcher, "joining")
        started = time.monotonic()
        words = last_words(launcher)
    assert said in words
    assert address in words
    # Python's own end included.
    assert time.monotonic() - started < 7


def test_a_token_in_its_file_is_found_and_the_service_starts(address: str, tmp_path: Path) -> None:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(TOKEN)
    port = free_port()
    with launched("--port", str(port), RAY_ADDRESS=address, HOME=str(tmp_path)) as launcher:
        lines_until(launcher, "ready:")
        assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "OK"}
        launcher.terminate()
        assert launcher.wait(100) == 0
