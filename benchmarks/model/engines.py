"""The project's engine without Ray: the one place here that knows Engine's interface, but for the tool in tuning/."""

import statistics
import time
from collections.abc import Callable

import torch
from sam2.modeling.sam2_base import SAM2Base

from deployments.messages.arrays import FloatArray
from deployments.messages.prompt import Prompt
from deployments.model.checkpoints import load_model
from deployments.model.engine import Engine, ImageEmbedding
from deployments.settings import BUNDLED_MODEL_ID, ModelSettings
from harness.weights import random_model, sam2_package
from tuning.measuring import embed

__all__ = ["embed"]

HIERA_CONFIGS = {"tiny": "configs/sam2/sam2_hiera_t.yaml", "large": "configs/sam2/sam2_hiera_l.yaml"}

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hiera(size: str) -> SAM2Base:
    """A model of Meta's size with seeded random weights."""
    return random_model(sam2_package() / HIERA_CONFIGS[size]).eval()


def demo() -> SAM2Base:
    """The bundled model, whose weights are trained: what masks look like depends on that."""
    return load_model(ModelSettings(model_id=BUNDLED_MODEL_ID), lambda *_: None)


def engine(model: SAM2Base, precision: str) -> Engine:
    """An engine on `device()`."""
    return Engine(model, device(), precision=PRECISIONS[precision])


def decode(engine: Engine, embedding: ImageEmbedding, prompt: Prompt) -> tuple[FloatArray, FloatArray]:
    """`B×C×256×256` logits and `B×C` scores of one prompt."""
    [answer] = engine.decode([(embedding, prompt)])
    return answer


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """How long a call takes, after one that warms up."""
    return statistics.median(all_seconds(call, repeats))


def all_seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """How long each of several calls takes, after one that warms up."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds
