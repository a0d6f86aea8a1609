"""Loads a model while its replica starts; if that fails, tries again in the background, with growing pauses."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments.errors import ModelLoadError
from deployments.settings import ModelSettings, use_compile_cache

if TYPE_CHECKING:
    from deployments.model.engine import Engine

LONGEST_PAUSE_S = 300.0

SHORTEST_PAUSE_S = 1.0
"""Pause between two attempts, no matter how many requests ask for one."""

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class DeviceDefaults:
    """Defaults that depend on the device, for settings that are left open; known once the model is loaded.

    Attributes:
        images: number of images in one batch.
        prompts: number of prompts in one batch.
        cache_bytes: memory for embeddings.
    """

    images: int = 1
    prompts: int = 1
    cache_bytes: int = 0


def load_engine(
    settings: ModelSettings, gpu_fraction: float, report: Callable[[str, int, int], None]
) -> "tuple[Engine, DeviceDefaults]":
    """Loads the weights, moves them to the device, and runs the model once, so that no request pays for that.

    Args:
        settings: the model.
        gpu_fraction: share of the GPU that Ray assigned.
        report: called with the name of the step, the bytes done and all bytes (0 and 0 if there is nothing to count).

    Raises:
        ModelLoadError: the weights cannot be loaded, or there is no such device.
    """
    # Imported here: they bring torch, which takes seconds, and app.py imports this file without loading a model.
    import deployments.model.automatic_masks  # noqa: F401 imported early, so that the first AutoCall need not wait
    from deployments.model.checkpoints import load_model
    from deployments.model.devices import (
        choose_precision,
        default_batch_sizes,
        default_cache_bytes,
        limit_compilers,
        start_device,
    )
    from deployments.model.engine import Engine

    model = load_model(settings, report)
    report("compiling and warming up" if settings.torch_compile else "warming up", 0, 0)
    device = start_device(settings.device, gpu_fraction, settings.torch_threads)
    use_compile_cache(settings.compile_cache)
    if settings.torch_compile:
        limit_compilers()
    batch_sizes = settings.compile_batch_sizes if settings.torch_compile else ()
    engine = Engine(model, device, choose_precision(settings.precision, device), batch_sizes)
    engine.warm_up()
    return engine, DeviceDefaults(*default_batch_sizes(device), default_cache_bytes(device))


class ModelLoader:
    """Holds the engine, or the reason why there is none.

    Args:
        load: builds the engine; raises ModelLoadError.
        on_failure: called with the cause of each failed attempt.
        first_pause_s: seconds to wait after the first failure; doubles with each failure, up to five minutes.
    """

    def __init__(self, load: Callable[[], "Engine"], on_failure: Callable[[str], None], first_pause_s: float) -> None:
        self._load = load
        self._on_failure = on_failure
        self.first_pause_s = first_pause_s
        self._engine: Engine | None = None
        self._cause = "has not been loaded yet"
        self._asked_again = threading.Event()

    def attempt(self) -> None:
        """Loads the model and returns when it is loaded.

        Raises:
            ModelLoadError: loading failed. Any other error (out of memory, a bug) is turned into one too.
        """
        try:
            self._engine = self._load()
        except ModelLoadError as error:
            logger.warning("loading failed: %s", error.message)
            self._note(error.message)
            raise
        except Exception as error:
            logger.exception("loading failed unexpectedly")
            self._note(f"{type(error).__name__}: {error}")
            raise ModelLoadError(self._cause) from error

    def keep_trying(self) -> None:
        """Repeats the attempt in a thread until one succeeds."""
        threading.Thread(target=self._retry, name="model-loader", daemon=True).start()

    @property
    def is_loaded(self) -> bool:
        """Whether there is an engine."""
        return self._engine is not None

    def engine(self) -> "Engine":
        """Returns the engine.

        Raises:
            ModelLoadError: the latest attempt failed. The next one is made soon instead of after the whole pause.
        """
        if self._engine is None:
            self._asked_again.set()
            raise ModelLoadError(self._cause)
        return self._engine

    def _retry(self) -> None:
        failures = 0
        while True:
            pause_s = min(self.first_pause_s * 2**failures, LONGEST_PAUSE_S)
            time.sleep(min(SHORTEST_PAUSE_S, pause_s))
            self._asked_again.wait(pause_s)
            self._asked_again.clear()
            try:
                self.attempt()
            except ModelLoadError:
                # attempt() has noted the cause; requests are answered with it meanwhile.
                failures += 1
            else:
                return

    def _note(self, cause: str) -> None:
        self._cause = cause
        self._on_failure(cause)
