"""Keeps calls from a server that fails again and again, and spaces the tries to connect to it."""

import time
from typing import Final

FREE_FAILURES: Final = 2
"""Failures in a row after which there is no pause yet."""
FIRST_PAUSE: Final = 1.0
"""Seconds; the pause doubles with each further failure."""
LONGEST_PAUSE: Final = 30.0


class Breaker:
    """Counts the failures of one server in a row. It is open during a pause after a failure: then no call is tried."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    @property
    def pause(self) -> float:
        """Returns the seconds until the next try; 0 if one may begin."""
        return max(0.0, self._until - time.monotonic())

    def failed(self) -> None:
        """Takes note of a connection that did not open, or broke."""
        self._failures += 1
        exponent = self._failures - FREE_FAILURES - 1
        if exponent >= 0:
            self._until = time.monotonic() + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(exponent, 10))

    def succeeded(self) -> None:
        """Takes note of an answer: the server works."""
        self._failures, self._until = 0, 0.0
