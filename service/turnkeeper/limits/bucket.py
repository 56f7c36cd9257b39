"""Token buckets. A token may be promised before it is there: its caller comes back for it."""

from dataclasses import dataclass
from typing import Final

MOST_PROMISED: Final = 1024
"""Tokens of one bucket that are promised at the same time."""


@dataclass(frozen=True, slots=True)
class CallRate:
    """How fast a bucket fills."""

    per_minute: int
    burst: int
    """The tokens of a full bucket."""

    @property
    def per_second(self) -> float:
        """Tokens that come in a second."""
        return self.per_minute / 60


class Bucket:
    """The tokens of one principal, or of one tenant, for one limit."""

    __slots__ = ("_at", "rate", "tokens")

    def __init__(self, rate: CallRate, now: float) -> None:
        """Begins full. `now`: monotonic seconds, as in all methods."""
        self.rate = rate
        self.tokens = float(rate.burst)
        """Below 0 while more are promised than are there."""
        self._at = now

    def fill(self, now: float) -> float:
        """Adds the tokens that came since the last call. Returns how many there are."""
        self.tokens = min(float(self.rate.burst), self.tokens + (now - self._at) * self.rate.per_second)
        self._at = now
        return self.tokens

    def wait(self, now: float) -> float:
        """Returns the seconds until the next token that is not promised is there; 0 if one is."""
        return max(0.0, 1.0 - self.fill(now)) / self.rate.per_second

    @property
    def may_promise(self) -> bool:
        """Returns True if one more token may be promised."""
        return self.tokens > 1 - MOST_PROMISED

    def take(self, count: int = 1) -> None:
        """Takes tokens that are there, or promises the next ones."""
        self.tokens -= count

    def give_back(self) -> None:
        """Returns a token."""
        self.tokens = min(float(self.rate.burst), self.tokens + 1)

    def is_full(self, now: float) -> bool:
        """Returns True if the bucket is as good as a new one."""
        return self.fill(now) >= self.rate.burst
