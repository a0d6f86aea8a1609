"""The image encoder in OpenVINO: converted, kept, tried and switched to; and torch, which stays whatever goes wrong."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base

from deployments.model import openvino_encoder
from deployments.model.checkpoints import load_model
from deployments.model.engine import Engine
from deployments.model.openvino_encoder import EncoderRefused, pays, switch_in_background, tried
from deployments.settings import ModelSettings
from harness.images import picture
from tests.unit.test_image_encoder import small_hiera

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

needs_openvino = pytest.mark.skipif(not openvino_encoder.is_installed(), reason="the extra openvino is not installed")


Settings = Callable[..., ModelSettings]


@pytest.fixture(scope="module")
def settings(small_demo: ModelSettings) -> Settings:
    """Builds settings of the model, with its encoder in OpenVINO."""

    def build(cache: Path, **changes: Any) -> ModelSettings:
        backend = {"encoder_backend": "openvino", "encoder_cache": cache}
        return ModelSettings.model_validate({**small_demo.model_dump(), **backend, **changes})

    return build


@pytest.fixture(scope="module")
def model(small_demo: ModelSettings) -> SAM2Base:
    """Loaded once: an engine takes parts off the model that it is given, and gets a copy."""
    return load_model(small_demo, lambda *_: None)


@pytest.fixture
def engine(model: SAM2Base) -> Engine:
    """The model in float32, still on torch."""
    return Engine(deepcopy(model), CPU)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Threads that were asked for; each runs at once, and in the caller's place."""
    asked: list[Any] = []

    class Thread:
        def __init__(self, target: Callable[[], None], **options: Any) -> None:
            asked.append(options)
            self.start = target

    monkeypatch.setattr(openvino_encoder, "threading", SimpleNamespace(Thread=Thread))
    return asked


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were there."""
    monkeypatch.setattr(openvino_encoder, "is_installed", lambda: True)


# ---- the fallback: without OpenVINO


def assert_stays(engine: Engine, wanted: ModelSettings, cause: str, caplog: pytest.LogCaptureFixture) -> None:
    """Tries to switch: torch stays, which is logged once, and requests are still answered."""
    encode = engine.encode
    switched: list[str] = []
    with caplog.at_level(logging.WARNING, "ray.serve"):
        switch_in_background(wanted, engine, switched.append)
    assert (engine.encode, engine.encoder_backend, switched) == (encode, "torch", [])
    [record] = caplog.records
    assert record.getMessage().startswith("sam2-demo: the image encoder stays on torch: ")
    assert cause in record.getMessage()


@pytest.mark.usefixtures("threads")
def test_where_openvino_is_missing_torch_stays(
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_encoder, "find_spec", lambda _: None)
    assert_stays(engine, settings(tmp_path), "install segment-anything-2-serve[openvino]", caplog)


@pytest.mark.usefixtures("threads", "installed")
def test_on_a_gpu_torch_stays(
    engine: Engine, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine.device = CUDA
    assert_stays(engine, settings(tmp_path), "the model runs on cuda", caplog)


@pytest.mark.usefixtures("threads", "installed")
def test_a_model_that_cannot_be_converted_stays_on_torch(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Engine(small_hiera(image_encoder__neck__fuse_type="avg"), CPU)
    assert_stays(other, settings(tmp_path), "takes Hiera with Meta's neck alone", caplog)


@pytest.mark.usefixtures("threads", "installed")
def test_a_conversion_that_fails_leaves_torch_and_no_files(
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_encoder, "PROGRAM", "import sys; sys.exit('no such operation: aten::surprise')")
    monkeypatch.setattr(openvino_encoder, "version", lambda _: "1")
    assert_stays(engine, settings(tmp_path), "exit code 1: no such operation: aten::surprise", caplog)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


@pytest.mark.usefixtures("threads", "installed")
def test_a_cache_folder_that_cannot_be_made_leaves_torch(
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_encoder, "version", lambda _: "1")
    (tmp_path / "file").touch()
    assert_stays(engine, settings(tmp_path / "file" / "cache"), "file", caplog)


@pytest.mark.usefixtures("threads", "installed")
def test_files_that_cannot_be_read_leave_torch_and_are_made_again(
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreadable(*_: Any) -> None:
        raise RuntimeError("cannot parse\nencoder.xml")

    converted: list[Path] = []
    monkeypatch.setattr(openvino_encoder, "version", lambda _: "1")
    monkeypatch.setattr(openvino_encoder, "OpenVinoEncoder", unreadable)

    def convert(_: ModelSettings, folder: Path) -> None:
        folder.mkdir()
        converted.append(folder)

    monkeypatch.setattr(openvino_encoder, "_convert_elsewhere", convert)
    for _ in range(2):
        caplog.clear()
        assert_stays(engine, settings(tmp_path), "cannot parse encoder.xml", caplog)
    assert len(converted) == 2


@pytest.mark.usefixtures("threads", "installed")
def test_without_the_memory_for_a_conversion_torch_stays(
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_encoder, "version", lambda _: "1")
    monkeypatch.setattr(openvino_encoder, "available_memory", lambda: 10**9)
    assert_stays(engine, settings(tmp_path), "GB of memory, and 1.0 GB are free", caplog)


@pytest.mark.usefixtures("threads", "installed")
def test_what_a_killed_replica_left_is_removed(
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_encoder, "PROGRAM", "import sys; sys.exit('no')")
    monkeypatch.setattr(openvino_encoder, "version", lambda _: "1")
    left = tmp_path / f"converting-{openvino_encoder._key(settings(tmp_path))}-abc"
    left.mkdir()
    (left / "encoder.bin").touch()
    assert_stays(engine, settings(tmp_path), "exit code 1", caplog)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_conversion_ends_with_its_replica() -> None:
    reading, writing = os.pipe()
    program = "from deployments.model.openvino_encoder import _end_with_the_caller; print(1, flush=True); "
    with subprocess.Popen(
        [sys.executable, "-c", program + "_end_with_the_caller()"], stdin=reading, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"1\n"
        assert process.poll() is None
        os.close(writing)
        assert process.wait(10) == 1
    os.close(reading)


@pytest.mark.usefixtures("threads", "installed")
def test_an_error_in_use_goes_back_to_torch(
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    encode, runs, switched = engine.encode, 0, list[str]()

    def breaks(pixels: torch.Tensor) -> list[torch.Tensor]:
        nonlocal runs
        runs += 1
        if runs > 2:
            raise RuntimeError("could not create a primitive")
        return encode(pixels)

    monkeypatch.setattr(openvino_encoder, "prepared", lambda *_: breaks)
    image = np.array(picture(60, 40))
    [expected] = engine.embed([image])

    switch_in_background(settings(tmp_path), engine, switched.append)
    found = [engine.embed([image])[0] for _ in range(3)]

    assert runs == 3
    assert switched == ["openvino", "torch"]
    assert (engine.encode, engine.encoder_backend) == (encode, "torch")
    assert all(torch.equal(one.image_embed, expected.image_embed) for one in found)
    assert "goes back to torch" in caplog.text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda maps: [one * 1.001 for one in maps], "0.001 from torch's, more than 0.0001"),
        (lambda maps: [one * torch.nan for one in maps], "nan from torch's"),
        (lambda maps: maps[::-1], "other shapes"),
        (lambda maps: maps[1:], "other shapes"),
    ],
    ids=["inexact", "not a number", "out of order", "too few"],
)
def test_maps_that_are_not_torchs_are_refused(engine: Engine, fault: Any, message: str) -> None:
    encode = engine.encode
    with pytest.raises(EncoderRefused, match=message):
        tried(engine, lambda pixels: fault(encode(pixels)))


def test_maps_that_are_torchs_are_taken(engine: Engine) -> None:
    encode = engine.encode

    def other(pixels: torch.Tensor) -> list[torch.Tensor]:
        return [one * 1.00001 for one in encode(pixels)]

    assert tried(engine, other) is other


# ---- who gets it


@pytest.mark.parametrize(
    ("device", "precision", "has_bfloat16", "expected"),
    [
        (CPU, torch.bfloat16, True, True),
        (CPU, torch.float32, True, False),
        (CPU, torch.bfloat16, False, False),
        (CUDA, torch.bfloat16, True, False),
    ],
)
def test_auto_takes_it_where_the_processor_has_bfloat16(
    device: torch.device, precision: torch.dtype, has_bfloat16: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_encoder, "multiplies_bfloat16", lambda _: has_bfloat16)
    assert pays(device, precision) is expected


@pytest.mark.parametrize(
    ("changes", "is_there", "is_faster", "expected"),
    [
        ({"encoder_backend": "auto"}, True, True, True),
        ({"encoder_backend": "auto"}, False, True, False),
        ({"encoder_backend": "auto"}, True, False, False),
        ({"encoder_backend": "auto", "torch_compile": True}, True, True, False),
        ({"encoder_backend": "torch"}, True, True, False),
        ({"encoder_backend": "openvino"}, True, False, True),
    ],
)
def test_a_switch_is_begun_where_it_is_wanted(
    engine: Engine,
    settings: Settings,
    threads: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    is_there: bool,
    is_faster: bool,
    expected: bool,
) -> None:
    monkeypatch.setattr(openvino_encoder, "is_installed", lambda: is_there)
    monkeypatch.setattr(openvino_encoder, "pays", lambda *_: is_faster)
    monkeypatch.setattr(openvino_encoder, "prepared", lambda *_: engine._encode)
    switched: list[str] = []

    switch_in_background(settings(tmp_path, **changes), engine, switched.append)

    assert bool(threads) is expected
    assert switched == ["openvino"] * expected
    assert engine.encoder_backend == ("openvino" if expected else "torch")


# ---- the real thing


@needs_openvino
@pytest.mark.usefixtures("threads")
def test_the_bundled_model_is_converted_once_and_then_gives_torchs_maps(
    engine: Engine, settings: Settings, model: SAM2Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [np.array(picture(160, 90, seed=1)), np.array(picture(50, 120, seed=2))]
    expected = engine.embed(images)
    switched: list[str] = []

    switch_in_background(settings(tmp_path), engine, switched.append)

    assert (switched, engine.encoder_backend) == (["openvino"], "openvino")
    for found, other in zip(engine.embed(images), expected, strict=True):
        torch.testing.assert_close(found.image_embed, other.image_embed, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.high_res_feats, other.high_res_feats, atol=1e-4, rtol=0)

    # In the module's place stands the stub that OpenVINO has for where its package for reports is missing.
    assert sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__ == "openvino.tools.ovc.telemetry_stub"

    # A later replica finds the files.
    monkeypatch.setattr(openvino_encoder, "_convert_elsewhere", None)
    later = Engine(deepcopy(model), CPU)
    switch_in_background(settings(tmp_path), later, switched.append)
    assert switched == ["openvino"] * 2
