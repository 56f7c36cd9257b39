"""Decides how long a batch gathers entries before it is committed. No I/O.

A transaction of one entry costs nearly as much as one of five. So a batch waits for the next common time if entries
come often, from callers that do not wait for each other. Entries of one caller come one after the other, however
often they come: then a wait gathers nothing, and there is none for a while.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

APART_S: Final = 0.04
"""Seconds between two common times, as between two deltas: the event loop wakes once for both."""
DENSE_APART_S: Final = APART_S / 2
"""The same where OFTEN entries come within this time: as many share a batch then."""
OFTEN: Final = 5
"""Entries within OFTEN_S from which on they come often: a batch then gathers one and a half on average, or more."""
OFTEN_S: Final = 0.2
TRIED: Final = 32
"""Batches after which it is looked whether their waits gathered anything."""
PAYS: Final = 1.1
"""Entries a batch, on average, from which on a wait pays."""
REST_S: Final = 10.0
"""Seconds without waits after TRIED batches whose waits did not pay."""


class Gathering:
    """Remembers when entries arrived, and what the last waits gathered."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns monotonic seconds."""
        self._clock = clock
        self._arrivals: deque[float] = deque(maxlen=OFTEN)
        self._gathered: deque[int] = deque(maxlen=TRIED)
        self._not_before = 0.0

    def arrived(self) -> None:
        """Takes the arrival of an entry."""
        self._arrivals.append(self._clock())

    def seconds(self) -> float:
        """Returns how long the next batch waits from now on: 0.0, or until the next common time."""
        now = self._clock()
        within = now - self._arrivals[0] if len(self._arrivals) == OFTEN else math.inf
        if within > OFTEN_S or now < self._not_before:
            return 0.0
        apart = DENSE_APART_S if within <= DENSE_APART_S else APART_S
        return apart - now % apart

    def ended(self, entries: int) -> None:
        """Takes how many entries there were after a wait."""
        self._gathered.append(entries)
        if len(self._gathered) == TRIED and sum(self._gathered) < PAYS * TRIED:
            self._not_before = self._clock() + REST_S
            self._gathered.clear()
