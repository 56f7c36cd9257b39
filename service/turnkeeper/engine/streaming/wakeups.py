"""Notifies waiting readers: of a change, all at once; of their deadlines, by one timer for all of them."""

import asyncio
import heapq
import itertools
import math
from collections.abc import Iterator
from typing import Final, Protocol

from turnkeeper.admission.gate import rest

NEVER = math.inf
READERS_AT_ONCE: Final = 128
"""Readers that are notified in one iteration of the event loop: some milliseconds of work, if each writes then."""


class Reader(Protocol):
    """What is notified of changes in the event loop itself, without a task that wakes."""

    def on_change(self) -> None:
        """Called soon after a change, once for changes that come together. Must not raise."""
        ...


class Broadcast:
    """Notifies everything that waits for the next change, and each reader of every change."""

    __slots__ = ("_is_notifying", "_readers", "_waiting", "count")

    def __init__(self) -> None:
        """Makes a broadcast without waiters."""
        self._waiting: set[asyncio.Future[None]] | None = None
        self._readers: dict[Reader, None] | None = None
        self._is_notifying = False
        self.count = 0
        """How often it has notified. A reader notes it before it looks, or it misses a change in between."""

    def subscribe(self) -> asyncio.Future[None]:
        """Returns a future of the caller's own, done at the next change. The caller must `unsubscribe` it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiting is None:
            self._waiting = set()
        self._waiting.add(future)
        return future

    def unsubscribe(self, future: asyncio.Future[None]) -> None:
        """Removes a future of `subscribe`, done or not."""
        if self._waiting is not None:
            self._waiting.discard(future)

    def add(self, reader: Reader) -> None:
        """Notifies the reader of changes from now on, until `remove`."""
        if self._readers is None:
            self._readers = {}
        self._readers[reader] = None

    def remove(self, reader: Reader) -> None:
        """Notifies the reader of no further change."""
        if self._readers is not None:
            self._readers.pop(reader, None)

    def notify(self) -> None:
        """Completes the futures of all subscribers, and notifies the readers in the next iteration of the loop."""
        self.count += 1
        waiting, self._waiting = self._waiting, None
        for future in waiting or ():
            if not future.done():
                future.set_result(None)
        if self._readers and not self._is_notifying:
            self._is_notifying = True
            asyncio.get_running_loop().call_soon(self._notify_readers)

    def _notify_readers(self) -> None:
        self._is_notifying = False
        self._notify_next(iter(tuple(self._readers or ())))

    def _notify_next(self, readers: Iterator[Reader]) -> None:
        """Notifies the next readers, of those that have not left. The others follow in the iterations after this."""
        count = 0
        for reader in itertools.islice(readers, READERS_AT_ONCE):
            count += 1
            if self._readers is not None and reader in self._readers:
                reader.on_change()
        if count == READERS_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._notify_next, readers)


class HasDeadline(Protocol):
    """A waiter that DeadlineTimers notifies once its deadline has passed."""

    deadline: float
    """By the event loop's clock; NEVER for none."""
    listed: float
    """The time under which DeadlineTimers has it in its list; NEVER if it is not in there."""

    def notify_deadline(self) -> None:
        """Called once the deadline has passed."""
        ...


class DeadlineTimers:
    """Watches the deadlines of many waiters with one timer.

    Moving a deadline to a later time does not move the timer, which then lists the waiter again at the earlier time.
    """

    def __init__(self) -> None:
        """Makes a list without deadlines."""
        self._heap: list[tuple[float, int, HasDeadline]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._next = NEVER

    def set(self, waiter: HasDeadline, deadline: float) -> None:
        """Sets the waiter's deadline, by the loop's clock. To drop it, the waiter sets its `deadline` to NEVER."""
        waiter.deadline = deadline
        if deadline < waiter.listed:
            self._list(waiter)
            self._start_timer()

    def _list(self, waiter: HasDeadline) -> None:
        """Puts the waiter in the list under its deadline."""
        waiter.listed = waiter.deadline
        heapq.heappush(self._heap, (waiter.deadline, next(self._order), waiter))

    def _start_timer(self) -> None:
        """Sets the timer for the earliest time in the list, unless it is set for it."""
        if not self._heap or self._heap[0][0] >= self._next:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._next = self._heap[0][0]
        self._timer = asyncio.get_running_loop().call_at(self._next, self._notify_due)

    def _notify_due(self) -> None:
        """Notifies the waiters whose deadline has passed; lists again those whose deadline was moved."""
        self._timer, self._next = None, NEVER
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            at, _, waiter = heapq.heappop(self._heap)
            if at != waiter.listed:
                continue
            waiter.listed = NEVER
            if waiter.deadline <= now:
                waiter.notify_deadline()
            elif waiter.deadline < NEVER:
                self._list(waiter)
        self._start_timer()


async def wait_for_change(broadcast: Broadcast, seconds: float) -> None:
    """Waits for the next change, at most `seconds`."""
    rest()
    future = broadcast.subscribe()
    try:
        await asyncio.wait([future], timeout=seconds)
    finally:
        broadcast.unsubscribe(future)
