"""Deadline: the time by which a request, or a step of a request, must be answered."""

import time

ASKED_SHARE = 0.95
"""Share of a client's own time limit that its request may use. The rest is for an error answer that comes in time."""


class Deadline:
    """A point in time by which a request, or a step of a request, must be answered."""

    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s

    @classmethod
    def of_request(cls, timeout_s: float, asked_s: float | None, elapsed_s: float) -> "Deadline":
        """Returns the service's own deadline, or the client's if that is sooner.

        Args:
            timeout_s: the service's limit, in seconds from now.
            asked_s: the client's limit (`x-request-timeout-seconds`), in seconds from the request's arrival; None if
                the client gave none.
            elapsed_s: seconds since the request arrived.
        """
        return cls(timeout_s if asked_s is None else min(timeout_s, asked_s * ASKED_SHARE - elapsed_s))

    def remaining(self) -> float:
        """Returns the seconds that are left, never negative."""
        return max(0.0, self._at - time.monotonic())

    def step(self, timeout_s: float) -> "Deadline":
        """Returns the deadline of one step: `timeout_s` from now, but never later than this deadline."""
        return Deadline(min(timeout_s, self.remaining()))
