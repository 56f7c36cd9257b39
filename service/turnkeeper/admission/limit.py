"""The most calls at work, by AIMD: additive increase, multiplicative decrease (Chiu and Jain, 1989).

The signs of overload are the time of a commit, its wait in the queue in front of the database included, and how late
the event loop is. A call's own duration is none: models, waits and watchers may take as long as they like.
"""

from collections import deque
from typing import Final

LEAST: Final = 64
"""Calls at work that are always allowed: two commits of a group that is full."""
AFTER_A_PAUSE: Final = 128
"""The limit falls to this at first, however few calls were at work: a pause must not refuse the next burst."""
MOST: Final = 2048
WINDOW: Final = 0.1
"""Seconds between two changes of the limit."""
WINDOWS: Final = 3
"""Windows with signs of overload, one after the other, from which on the limit decreases: a pause alone is none."""
DECREASE: Final = 0.95
INCREASE: Final = 4
REMEMBERED: Final = 20
"""Windows for which a replica counts as overloaded after the last one with signs."""
SLOW_COMMIT: Final = 0.12
"""Mean seconds of a commit that are a sign of overload, unless commits are as slow without load."""
TIMES_BEST: Final = 4.0
"""A mean of at most this many times the best one of BEST_WINDOWS does not count: the database may be far."""
BEST_WINDOWS: Final = 600
LATE_LOOP: Final = 0.02
"""Mean seconds by which the event loop is late that are a sign of overload."""


class Limit:
    """The limit of calls at work."""

    def __init__(self) -> None:
        """Starts at MOST."""
        self.most = MOST
        self.calls = float(MOST)
        self._commits: list[float] = []
        self._commit_seconds = 0.0
        """The mean of the last window that had commits; 0 after one without calls."""
        self._lags: list[float] = []
        self._peak = 0
        self._overloaded = 0
        self._remembered = 0
        self._means: deque[float] = deque(maxlen=BEST_WINDOWS)

    @property
    def has_signs(self) -> bool:
        """True while the replica has signs of overload."""
        return self._overloaded >= WINDOWS

    @property
    def is_overloaded(self) -> bool:
        """True while the replica has signs of overload, and REMEMBERED windows afterwards."""
        return self._remembered > 0

    def committed(self, seconds: float) -> None:
        """Takes the time of one commit, its wait in the queue included."""
        self._commits.append(seconds)

    def late(self, seconds: float) -> None:
        """Takes how late the event loop was."""
        self._lags.append(seconds)

    def at_work(self, count: int) -> None:
        """Takes how many calls are at work."""
        self._peak = max(self._peak, count)

    def set_most(self, calls: int) -> None:
        """Sets the highest limit, and the limit to it."""
        self.most, self.calls = calls, float(calls)

    def end_window(self) -> None:
        """Changes the limit: by a factor while the replica is overloaded, by INCREASE if half of it was used."""
        if self._commits:
            self._commit_seconds = _mean(self._commits)
        elif not self._peak:
            self._commit_seconds = 0.0
        self._overloaded = self._overloaded + 1 if self._has_signs() else 0
        self._remembered = REMEMBERED if self.has_signs else max(0, self._remembered - 1)
        if self.has_signs:
            least = min(LEAST, self.most)
            self.calls = max(least, min(self.calls, max(self._peak, AFTER_A_PAUSE)) * DECREASE)
        elif not self._overloaded and self._peak >= self.calls / 2:
            self.calls = min(self.most, self.calls + INCREASE)
        if self._commits:
            self._means.append(self._commit_seconds)
        self._commits, self._lags, self._peak = [], [], 0

    def _has_signs(self) -> bool:
        return _mean(self._lags) > LATE_LOOP or self._commit_seconds > max(
            SLOW_COMMIT, TIMES_BEST * min(self._means, default=0.0)
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
