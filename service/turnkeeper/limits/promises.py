"""Promised tokens: each refused call may come back for its own, when its time has come."""

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Final

from turnkeeper.limits.bucket import Bucket

MOST: Final = 4096
"""Promises that one replica keeps."""
KEPT_SECONDS: Final = 5.0
"""A promise whose caller has not come back so long after its time is void: the token is free for others."""
EARLY: Final = 0.1
"""Seconds that a caller may be early. Timers of a busy event loop (libuv, so Node.js too) run from its last look at the
clock."""
STEP: Final = 0.01
"""Times are rounded up to it, those of more than 10 s to ten times as much: refusals are then few, and written once."""


def rounded_up(seconds: float) -> float:
    """Returns the time after which a caller is to come back."""
    step = STEP if seconds <= 10 else 10 * STEP
    return max(STEP, round(math.ceil(seconds / step - 1e-6) * step, 2))


class Promise:
    """The tokens that were promised to one call."""

    __slots__ = ("due", "key", "payments")

    def __init__(self, key: int, due: float, payments: Sequence[Bucket]) -> None:
        self.key, self.due, self.payments = key, due, payments
        """When the call is to come back, in monotonic seconds."""

    def __lt__(self, other: "Promise") -> bool:
        return self.due < other.due


class Promises:
    """The promises that are open, by the key of their call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns monotonic seconds."""
        self._clock = clock
        self._open: dict[int, list[Promise]] = {}
        self._by_due: list[Promise] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def make(self, key: int, payments: Sequence[Bucket]) -> float | None:
        """Promises a token of each bucket. Returns the seconds after which the call is to come back.

        Returns None, with no promise made, if too many are open.
        """
        now = self._clock()
        if self._count >= MOST or not all(bucket.may_promise for bucket in payments):
            return None
        seconds = rounded_up(max(bucket.wait(now) for bucket in payments))
        promise = Promise(key, now + seconds, tuple(payments))
        for bucket in payments:
            bucket.take()
        self._open.setdefault(key, []).append(promise)
        heapq.heappush(self._by_due, promise)
        self._count += 1
        if len(self._by_due) > 2 * MOST:  # most of them were kept already
            self._by_due = sorted(promise for promise in self._by_due if promise.payments)
        return seconds

    def keep(self, key: int) -> Sequence[Bucket] | None:
        """Returns what was paid for a call whose time has come: it may go on. Returns None for any other call."""
        waiting = self._open.get(key)
        if not waiting or waiting[0].due - EARLY > self._clock():
            return None
        promise = waiting.pop(0)
        payments, promise.payments = promise.payments, ()
        self._forget(key)
        return payments

    def seconds(self, key: int) -> float | None:
        """Returns the seconds until the call's time comes; None if it has no promise."""
        waiting = self._open.get(key)
        return rounded_up(waiting[0].due - self._clock()) if waiting else None

    def expire(self) -> None:
        """Gives the tokens back of those who have not come."""
        now = self._clock()
        while self._by_due and self._by_due[0].due + KEPT_SECONDS < now:
            promise = heapq.heappop(self._by_due)
            if promise.payments:
                for bucket in promise.payments:
                    bucket.give_back()
                self._open[promise.key].remove(promise)
                self._forget(promise.key)

    def _forget(self, key: int) -> None:
        self._count -= 1
        if not self._open[key]:
            del self._open[key]
