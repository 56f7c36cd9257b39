"""How many turns a second are accepted in an overload: AIMD of the admitted rate, as in SEDA (Welsh and Culler, 2003).

An overload sets the rate to a part of that at which turns are worked off, which is what the replica can do. Without
signs of overload the rate increases, and at last ends. How long a turn takes has no effect.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

LEAST: Final = 20.0
"""Turns a second that are always accepted."""
MOST: Final = 1000.0
"""A rate that reaches this ends."""
DECREASE: Final = 0.9
FAST: Final = 2.5
"""Turns a second by which the rate increases in a window, up to what was served before the last overload."""
SLOW: Final = 0.5
"""The same above that rate."""
SERVED_SECONDS: Final = 1.0
"""An overload is judged by the turns that began, and that ended, in so many seconds."""
BEFORE_SECONDS: Final = 10.0
"""What was served before it is judged by the turns of so many seconds."""
BURST: Final = 64
"""Turns that may come at once, less the calls that are at work when an overload begins.

A database that takes seconds for each commit has the signs of an overload also where few calls are at work.
"""


class Rate:
    """The rate at which an overloaded replica accepts turns."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts without a limit. `clock` gives monotonic seconds."""
        self.per_second = math.inf
        self._clock = clock
        self._free = 0.0
        self._filled_at = clock()
        self._before = 0.0
        """Turns a second that were served before the last overload."""
        self._steps: deque[float] = deque()
        self._was_overloaded = False

    def stepped(self) -> None:
        """Counts a turn that was accepted or has ended: half of a turn's work."""
        now = self._clock()
        self._forget(now)
        self._steps.append(now)

    def has_room(self) -> bool:
        """Returns True if one more turn may be accepted now."""
        if self.per_second == math.inf:
            return True
        now = self._clock()
        self._free = min(float(BURST), self._free + (now - self._filled_at) * self.per_second)
        self._filled_at = now
        return self._free >= 1.0

    def take(self) -> bool:
        """Returns True if one more turn may be accepted now, and counts it."""
        has_room = self.has_room()
        if has_room:
            self._free -= 1.0
        return has_room

    def give_back(self) -> None:
        """Counts a turn off that was taken and is not wanted any more."""
        if self.per_second != math.inf:
            self._free = min(float(BURST), self._free + 1.0)

    def end_window(self, *, is_overloaded: bool, at_work: int) -> None:
        """Changes the rate after a window of the limit of calls, at whose end so many are at work."""
        if is_overloaded:
            if not self._was_overloaded:
                self._before = DECREASE * self._served(BEFORE_SECONDS)
            if self.per_second == math.inf:
                self._free, self._filled_at = float(max(0, BURST - at_work)), self._clock()
            self.per_second = max(LEAST, DECREASE * self._served(SERVED_SECONDS))
        else:
            self.per_second += FAST if self.per_second < self._before else SLOW
            if self.per_second > MOST:
                self.per_second = math.inf
        self._was_overloaded = is_overloaded

    def _served(self, seconds: float) -> float:
        """Returns the turns a second that were worked off in the last seconds."""
        now = self._clock()
        self._forget(now)
        return sum(at >= now - seconds for at in self._steps) / 2 / seconds

    def _forget(self, now: float) -> None:
        while self._steps and self._steps[0] < now - BEFORE_SECONDS:
            self._steps.popleft()
