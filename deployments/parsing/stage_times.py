"""StageTimes: where a request's time went."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deployments.messages.calls import ModelAnswer


class StageTimes:
    """Seconds that a request spent in each stage.

    Attributes:
        cache: `hit` if the image was remembered, `miss` if not, "" while that is not known.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self.cache = ""

    def add(self, name: str, seconds: float) -> None:
        """Adds to a stage's seconds."""
        self._seconds[name] = self._seconds.get(name, 0.0) + max(0.0, seconds)

    @contextmanager
    def measure(self, name: str, but: str = "") -> Iterator[None]:
        """Adds the seconds that the block takes to a stage, less those that it adds to another one.

        Args:
            name: of the stage.
            but: of the other stage; "" if there is none.
        """
        started, before = time.perf_counter(), self._seconds.get(but, 0.0)
        try:
            yield
        finally:
            others = self._seconds.get(but, 0.0) - before
            self.add(name, time.perf_counter() - started - others)

    def add_model(self, answer: ModelAnswer[Any], seconds: float) -> None:
        """Splits the seconds that a model's answer took: all but embedding and decoding is `queue`."""
        self.add("queue", seconds - answer.embed_s - answer.decode_s)
        self.add("embed", answer.embed_s)
        self.add("decode", answer.decode_s)
        self.cache = answer.cache

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each stage so far."""
        return dict(self._seconds)
