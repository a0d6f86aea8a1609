"""`python -m deployments` before anything starts: signals, wrong configs, a taken port, prefetching."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from huggingface_hub import constants

from deployments import launcher
from deployments.launcher import Stopped, _catch_stop_signals
from harness.serve import local_config
from harness.weights import fill_hub_cache

TINY = "facebook/sam2-hiera-tiny"


@pytest.fixture
def own_signals() -> Iterator[None]:
    """The launcher catches signals; afterwards they do what they did before."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_stopped_once_by_either_signal(number: signal.Signals, own_signals: None) -> None:
    _catch_stop_signals()
    with pytest.raises(Stopped):
        signal.raise_signal(number)
    # Until the end has begun, more of them change nothing.
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)


def test_a_wrong_config_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process: a launcher of its own would need seconds to be imported.
    monkeypatch.setattr(launcher, "prepare_environment", None)
    config = local_config(tmp_path / "config.yaml", models=["sam2-demo"], defualt_model="x")
    assert launcher.main(["--config", config]) == 1
    assert "args.defualt_model" in capsys.readouterr().err
    assert launcher.main(["--config", str(tmp_path / "gone.yaml")]) == 1
    assert "gone.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_wrong_time_for_heads_is_refused_by_its_name(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "prepare_environment", None)
    monkeypatch.setenv("REQUEST_HEAD_TIMEOUT_S", text)
    assert launcher.main(["--config", local_config(tmp_path / "config.yaml", models=["sam2-demo"])]) == 1
    assert f"REQUEST_HEAD_TIMEOUT_S: must be a number of seconds above 0, is '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize(("address", "cores"), [(None, 3), ("10.0.0.1:6379", None)])
def test_a_ray_of_its_own_has_the_cores_that_may_be_used_here(
    monkeypatch: pytest.MonkeyPatch, address: str | None, cores: int | None
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(launcher, "usable_cores", lambda: 3)
    monkeypatch.setattr(launcher, "ray_address", lambda: address)
    monkeypatch.setattr(launcher, "check_cluster", lambda _: None)
    monkeypatch.setattr(ray, "init", lambda **options: asked.append(options["num_cpus"]))

    launcher._start_ray()

    assert asked == [cores]


def test_a_port_in_use_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_signals: None
) -> None:
    monkeypatch.setattr(launcher, "prepare_environment", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert launcher.main(["--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_prefetch_ends_with_the_files_or_with_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, from a hub cache that has one of the two."""
    cached = fill_hub_cache(tmp_path, TINY)
    # What HF_HUB_CACHE and HF_HUB_OFFLINE set when the library is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert launcher.main(["prefetch", TINY]) == 0
    assert capsys.readouterr().out == f"{TINY}: {cached}\n"
    assert launcher.main(["prefetch", TINY, "facebook/sam2.1-hiera-tiny"]) == 1
    said = capsys.readouterr()
    assert said.out == f"{TINY}: {cached}\n"
    assert "sam2.1_hiera_tiny.pt is not in the hub cache" in said.err
