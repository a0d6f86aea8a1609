"""When a request, or a step of one, must be answered."""

import time

ASKED_SHARE = 0.95
"""Of the time that a client gives a request; what is left is for the answer that says it was too short."""


class Deadline:
    """A point in time by which a request, or a step of one, must be answered."""

    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s

    @classmethod
    def asked(cls, timeout_s: float, asked_s: float | None, elapsed_s: float) -> "Deadline":
        """The service's own deadline, or the client's if that is sooner.

        Args:
            timeout_s: of the service, from now.
            asked_s: of the client (`x-request-timeout-seconds`), from the request's arrival; None: it gave none.
            elapsed_s: how long ago it arrived.
        """
        return cls(timeout_s if asked_s is None else min(timeout_s, asked_s * ASKED_SHARE - elapsed_s))

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._at - time.monotonic())

    def step(self, timeout_s: float) -> "Deadline":
        """The deadline of one step: so many seconds from now, but never later than the whole's."""
        return Deadline(min(timeout_s, self.remaining()))
