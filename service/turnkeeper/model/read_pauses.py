"""When to read an answer again: what arrives while the caller has no use for more text is read together."""

from collections.abc import Callable
from typing import Final

from turnkeeper.model.collected import FULL_READ

FIRST_PAUSE: Final = 0.005
"""Seconds of the first pause; each is twice as long as the one before, so that a short answer is read soon."""
FAST_TIME: Final = 1.0
"""Seconds for which a fast server's answer is read as it comes: in a pause the connection's buffers are soon full."""


class ReadPauses:
    """Decides how long the reader of one answer leaves what arrives to the connection."""

    def __init__(self, patience: Callable[[], float], *, now: Callable[[], float]) -> None:
        """`patience`: see `ModelRequest.patience`. `now` is a clock in seconds."""
        self._patience = patience
        self._now = now
        self._longest = FIRST_PAUSE
        self._fast_until = 0.0

    def after(self, size: int) -> float:
        """Returns the seconds until the next read, after one of `size` bytes."""
        if size >= FULL_READ:
            self._fast_until = self._now() + FAST_TIME
        pause = min(self._patience(), self._longest)
        if pause <= 0 or self._now() < self._fast_until:
            return 0.0
        self._longest *= 2
        return pause
