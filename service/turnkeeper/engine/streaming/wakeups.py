"""Signals that something changed; and times at which somebody wants to be woken, with one timer for all of them."""

import asyncio
import heapq
import itertools
import math
from typing import Protocol

NEVER = math.inf


class Broadcast:
    """Wakes everybody who waits for the next change."""

    __slots__ = ("_waiting", "fired")

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] | None = None
        self.fired = 0
        """How often. Note it before you look, or a change in between is missed."""

    def next(self) -> asyncio.Future[None]:
        """One's own, done at the next change; `leave` it when you stop waiting."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiting is None:
            self._waiting = set()
        self._waiting.add(future)
        return future

    def leave(self, future: asyncio.Future[None]) -> None:
        if self._waiting is not None:
            self._waiting.discard(future)

    def fire(self) -> None:
        self.fired += 1
        waiting, self._waiting = self._waiting, None
        for future in waiting or ():
            if not future.done():
                future.set_result(None)


class Sleeper(Protocol):
    """Who is woken. `due`: when, NEVER for not at all; `listed`: where it stands in the list, NEVER for nowhere."""

    due: float
    listed: float

    def ring(self) -> None:
        """It is time."""
        ...


class DeadlineTimers:
    """A time that is put off moves no timer: the sleeper is looked at again at its old one."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sleeper]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._next = NEVER

    def set(self, sleeper: Sleeper, due: float) -> None:
        """`due` by the loop's clock. To have it no more, set the sleeper's own `due` to NEVER."""
        sleeper.due = due
        if due < sleeper.listed:
            self._list(sleeper)
            self._arm()

    def _list(self, sleeper: Sleeper) -> None:
        sleeper.listed = sleeper.due
        heapq.heappush(self._heap, (sleeper.due, next(self._order), sleeper))

    def _arm(self) -> None:
        if not self._heap or self._heap[0][0] >= self._next:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._next = self._heap[0][0]
        self._timer = asyncio.get_running_loop().call_at(self._next, self._ring)

    def _ring(self) -> None:
        self._timer, self._next = None, NEVER
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            at, _, sleeper = heapq.heappop(self._heap)
            if at != sleeper.listed:
                continue
            sleeper.listed = NEVER
            if sleeper.due <= now:
                sleeper.ring()
            elif sleeper.due < NEVER:
                self._list(sleeper)
        self._arm()


async def either(signal: Broadcast, seconds: float) -> None:
    """Until it fires, or the time is over."""
    future = signal.next()
    try:
        await asyncio.wait([future], timeout=seconds)
    finally:
        signal.leave(future)
