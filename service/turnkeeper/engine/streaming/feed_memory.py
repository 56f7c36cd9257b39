"""What the feeds of this replica hold in memory, and when they give it back.

What a feed holds beside the text that is being written is a cache of the log: its watchers read the log without it.
"""

import time
from collections.abc import Callable
from itertools import takewhile
from typing import Final, Protocol

from turnkeeper.admission.memory import MemoryBudget

REST_SECONDS: Final = 5.0
"""A feed without news for so long gives back what it holds."""


class Holder(Protocol):
    """A feed."""

    def rest(self) -> None:
        """Gives back all that can be read from the log."""
        ...


class FeedMemory:
    """Counts what the feeds hold, and makes them give it back: those whose last news is oldest first."""

    def __init__(self, memory: MemoryBudget | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._part = (memory or MemoryBudget()).part("feeds", shrink=self.shrink)
        self._clock = clock
        self._held: dict[Holder, tuple[float, int]] = {}
        """The feeds that hold something, those with the oldest news first: the time of the news, and bytes."""

    def hold(self, feed: Holder, size: int, *, is_news: bool = True) -> None:
        """Takes how many bytes a feed holds now. `is_news`: it has just got some of them."""
        at, before = self._held.pop(feed, (0.0, 0)) if is_news or not size else self._held.get(feed, (0.0, 0))
        if size:
            self._held[feed] = (self._clock() if is_news else at, size)
        if size != before:
            self._part.add(size - before)

    def rest(self) -> None:
        """Makes the feeds give back what they hold that had no news for REST_SECONDS."""
        latest = self._clock() - REST_SECONDS
        for feed, _ in list(takewhile(lambda held: held[1][0] <= latest, self._held.items())):
            feed.rest()

    def shrink(self, size: int) -> None:
        """Makes feeds give back so many bytes, if they hold so many."""
        goal = self._part.used - size
        for feed in list(self._held):
            if self._part.used <= goal:
                break
            feed.rest()
