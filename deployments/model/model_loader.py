"""Loads a model in the background: remembers a failure, and tries again with growing pauses."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from deployments.errors import ModelLoadError

if TYPE_CHECKING:
    from deployments.model.engine import Engine

LONGEST_PAUSE_S = 300.0

logger = logging.getLogger("ray.serve")


class ModelLoader:
    """Calls `load` in a thread until it succeeds.

    Args:
        load: builds the engine; raises ModelLoadError.
        on_failure: told the cause of each failed attempt.
        first_pause_s: how long to wait after the first failure; doubles each time, up to five minutes.
    """

    def __init__(self, load: Callable[[], "Engine"], on_failure: Callable[[str], None], first_pause_s: float) -> None:
        self._load = load
        self._on_failure = on_failure
        self._pause_s = first_pause_s
        self._outcome: Future[Engine] = Future()
        self._asked_again = threading.Event()
        threading.Thread(target=self._load_until_done, name="model-loader", daemon=True).start()

    async def engine(self) -> "Engine":
        """The engine, as soon as it is loaded.

        Raises:
            ModelLoadError: at once if the latest attempt failed; another is then made soon, not only after the pause.
        """
        outcome = self._outcome
        if outcome.done() and outcome.exception() is not None:
            self._asked_again.set()
        # Shielded: a request that is cancelled while it waits must not cancel the load for the others.
        return await asyncio.shield(asyncio.wrap_future(outcome))

    def _load_until_done(self) -> None:
        while not self._try_once():
            # Never sooner than a second, however many requests ask.
            threading.Event().wait(min(1.0, self._pause_s))
            self._asked_again.wait(self._pause_s)
            self._asked_again.clear()
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _try_once(self) -> bool:
        try:
            engine = self._load()
        except ModelLoadError as error:
            logger.warning("loading failed: %s", error.message)
            return self._settle_failure(error)
        # Whatever else goes wrong here (out of memory, a bug) must reach those who wait, or they would wait forever.
        except Exception as error:
            logger.exception("loading failed unexpectedly")
            return self._settle_failure(ModelLoadError(f"{type(error).__name__}: {error}"))
        self._pending_outcome().set_result(engine)
        return True

    def _settle_failure(self, error: ModelLoadError) -> bool:
        self._on_failure(error.message)
        self._pending_outcome().set_exception(error)
        return False

    def _pending_outcome(self) -> "Future[Engine]":
        """The future that requests wait for; a fresh one after a failure, which stays in force until then."""
        if self._outcome.done():
            self._outcome = Future()
        return self._outcome
