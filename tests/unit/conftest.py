"""What several unit tests share: made-up segmentations, the bundled model, loaded once, and the client's pauses."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from deployments import client
from deployments.messages.segmentation import Segmentation, sorted_segmentation
from deployments.model.checkpoints import DEMO, load_model
from deployments.model.engine import Engine
from deployments.settings import ModelSettings

PILLOWS_LIMIT = Image.MAX_IMAGE_PIXELS

if "PYTEST_XDIST_WORKER" in os.environ:
    # One of several processes: threads of each would wait for the cores that the others use.
    torch.set_num_threads(1)


def made_up_segmentation(
    image_size: tuple[int, int],
    objects: int = 1,
    candidates: int = 3,
    has_object_axis: bool = False,
    scale: float = 12.0,
) -> Segmentation:
    """Noise for logits, random scores."""
    rng = np.random.default_rng(objects * 1000 + candidates)
    return sorted_segmentation(
        image_id="0" * 64,
        model_id="sam2-demo",
        image_size=image_size,
        low_res_logits=rng.normal(0, scale, (objects, candidates, 256, 256)).astype(np.float32),
        iou_predictions=rng.random((objects, candidates), np.float32),
        has_object_axis=has_object_axis,
    )


@pytest.fixture(scope="session")
def segmentation_of() -> Callable[..., Segmentation]:
    """Builds a Segmentation that no model has seen."""
    return made_up_segmentation


@pytest.fixture(scope="session")
def demo_engine() -> Engine:
    """The bundled model on the CPU."""
    engine = Engine(load_model(ModelSettings(model_id="sam2-demo"), lambda *_: None), torch.device("cpu"))
    # As on a GPU, whatever cores there are here.
    engine.objects_at_once = 32
    return engine


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    """The bundled model for frames of 256 pixels a side, a sixteenth of the arithmetic: where no size is looked at."""
    config = OmegaConf.load(DEMO / "sam2_demo.yaml")
    OmegaConf.update(config, "model.image_size", 256)
    file = tmp_path_factory.mktemp("small_demo") / "small_demo.yaml"
    OmegaConf.save(config, file)
    return ModelSettings(model_id="sam2-demo", checkpoint=DEMO / "sam2_demo.safetensors", config=str(file))


@pytest.fixture(scope="session")
def small_engine(small_demo: ModelSettings) -> Engine:
    """It, on the CPU."""
    engine = Engine(load_model(small_demo, lambda *_: None), torch.device("cpu"))
    engine.objects_at_once = 32
    return engine


@pytest.fixture(autouse=True)
def pillows_limit() -> Iterator[None]:
    """Puts Pillow's limit of pixels back after each test: whatever reads an image sets it for its whole process."""
    yield
    Image.MAX_IMAGE_PIXELS = PILLOWS_LIMIT


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's pauses in seconds, which take no time, and have no jitter."""
    seconds: list[float] = []

    async def note(pause: float) -> None:
        seconds.append(pause)

    own_thread, really_sleep = threading.get_ident(), time.sleep

    def note_own(pause: float) -> None:
        # Threads that earlier tests have left in this process sleep on.
        if threading.get_ident() == own_thread:
            seconds.append(pause)
        else:
            really_sleep(pause)

    monkeypatch.setattr(time, "sleep", note_own)
    monkeypatch.setattr(client, "sleep", note)
    monkeypatch.setattr(random, "uniform", lambda low, _: low)
    return seconds
