"""Where a request's time went: the `Server-Timing` header."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deployments.messages.prompt import ModelAnswer

HEADER = "Server-Timing"


class ServerTiming:
    """Collects durations, in seconds, and writes them as milliseconds (W3C Server Timing)."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self.cache = ""

    def add(self, name: str, seconds: float) -> None:
        """Adds to one of the durations."""
        self._seconds[name] = self._seconds.get(name, 0.0) + max(0.0, seconds)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add_model(self, answer: ModelAnswer[Any], seconds: float) -> None:
        """Splits the time that a model's answer took: what was neither embedding nor decoding is `queue`."""
        self.add("queue", seconds - answer.embed_s - answer.decode_s)
        self.add("embed", answer.embed_s)
        self.add("decode", answer.decode_s)
        self.cache = answer.cache

    def seconds(self) -> dict[str, float]:
        """The durations by now."""
        return dict(self._seconds)

    def header(self) -> str:
        """The header's value, such as `parse;dur=3.1, queue;dur=2.0, …, cache;desc="hit"`."""
        durations = [f"{name};dur={seconds * 1000:.1f}" for name, seconds in self._seconds.items()]
        return ", ".join([*durations, *([f'cache;desc="{self.cache}"'] if self.cache else [])])
