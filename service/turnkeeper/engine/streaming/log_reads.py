"""Reads pages of a session's log for watchers that are behind the live tail, one read for all that need the page.

A page is not cached: it exists only while a watcher uses it, or is about to. A watcher that comes meanwhile shares it.
The page behind one is read while that one is sent.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from turnkeeper.domain.cursor import StreamPosition, history_of
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.wakeups import Broadcast
from turnkeeper.store.changeset import StoredEvent

PAGE_LEAST, PAGE_MOST, PAGE_BYTES = 8, 1024, 256 * 1024
"""The fewest and the most events of a page of the log, and its intended size in bytes.

The average size of a page's events gives the next page's number of events.
"""
AHEAD: Final = 0.5
"""The page behind one is read once so much of it, or less, is left to send: a slow reader holds no more."""


class PageRequest(NamedTuple):
    """What a watcher wants to read. Equal requests give equal pages: durable events do not change."""

    after: int
    """The page begins behind the event with this number."""
    limit: int
    """Its events, at most."""
    last_seq: int
    """The last event that the watcher knows of: a page that was read for one that knew of less may lack it."""


class LogPage:
    """Consecutive events of a log, and the batches that watchers have built from them."""

    __slots__ = ("__weakref__", "_start", "ahead", "batches", "events", "history", "last", "size", "stored", "was_read")

    def __init__(self, start: int, stored: Sequence[StoredEvent], *, was_read: bool = False) -> None:
        """`stored`: the events that were read from number `start` on, in order. The page ends before the first gap.

        The one with that number is not part of the page: it names the history that the page continues. `was_read`: the
        events were read from the log, they are not the feed's.
        """
        self._start = start
        self.was_read = was_read
        self.history: str | None = None
        """The history that the page continues; None if the event before it is not there any more."""
        if stored and stored[0].sequence == start:
            self.history, stored = history_of(stored[0].changeset_id), stored[1:]
        self.stored = stored
        """The events as they were read, those behind a gap included."""
        events = stored
        numbers = [event.sequence for event in stored]
        if numbers != list(range(start + 1, start + 1 + len(numbers))):
            events = [event for number, event in enumerate(stored, start + 1) if event.sequence == number]
        self.events = events
        """The events before the first gap."""
        self.last = start + len(events)
        """The number of its last event."""
        self.size = sum([len(event.payload) for event in events])
        """Bytes of its events."""
        self.batches: dict[tuple[StreamPosition, EventFilter], Batch] | None = None
        """The batch that was built for each position and filter, for further watchers; None if one watcher reads it."""
        self.ahead: SharedRead | None = None
        """The read of the page behind this one, once it has begun."""

    def share(self) -> None:
        """Keeps the batches from now on, for another watcher that reads the page."""
        if self.batches is None:
            self.batches = {}
            if self.ahead is not None:
                self.ahead.join()

    @property
    def next_limit(self) -> int:
        """Returns how many events the next page should have."""
        return max(PAGE_LEAST, min(PAGE_MOST, PAGE_BYTES * len(self.events) // (self.size + 1)))

    def wants_next(self, sequence: int) -> bool:
        """Returns True if the page behind this one should be read now for a watcher that is at this number."""
        return self.was_read and self.ahead is None and self.last - sequence <= AHEAD * len(self.events)

    def after(self, sequence: int) -> Sequence[StoredEvent]:
        """Returns the page's events whose number is greater than `sequence`."""
        return self.events[sequence - self._start :]


NO_EVENTS: Final = LogPage(0, ())
"""The page of a watcher that has all events."""


class SharedRead:
    """A page that is being read, for all watchers that need the same page and know of no newer event.

    A hundred watchers that reconnect at the same time read the log once.
    """

    __slots__ = ("_done", "_joined", "page", "request")

    def __init__(self, request: PageRequest, *, page: LogPage | None = None) -> None:
        """`page`: the page, if another watcher has it already."""
        self.request = request
        self._done = Broadcast()
        self.page = page
        self._joined = False
        if page is not None:
            self._done.notify()

    def join(self) -> None:
        """Notes that several watchers need the page."""
        self._joined = True
        if self.page is not None:
            self.page.share()

    async def read(self, fetch: Callable[[], Awaitable[Sequence[StoredEvent]]]) -> LogPage:
        """Called by the first reader: returns the page, and passes it to the readers that wait. Raises as `fetch`."""
        try:
            self.page = page = LogPage(self.request.after, await fetch(), was_read=True)
            if self._joined:
                page.share()
            return page
        finally:
            self._done.notify()

    async def wait(self) -> LogPage | None:
        """Called by the other readers: returns the page.

        Returns None if the first reader failed or was cancelled; the caller then reads the page itself.
        """
        if self._done.count:
            return self.page
        future = self._done.subscribe()
        try:
            await future
        finally:
            self._done.unsubscribe(future)
        return self.page


class SharedPages:
    """The pages of one log that watchers have, or read."""

    __slots__ = ("_pages", "_reads")

    def __init__(self) -> None:
        """Makes it without pages."""
        self._reads: dict[PageRequest, SharedRead] = {}
        self._pages: WeakValueDictionary[PageRequest, LogPage] | None = None

    def get(self, request: PageRequest) -> SharedRead | None:
        """Returns the read of this page if it is under way, or if a watcher still has the page; otherwise None."""
        page = self._pages.get(request) if self._pages is not None else None
        return self._reads.get(request) if page is None else SharedRead(request, page=page)

    @contextmanager
    def reading(self, read: SharedRead) -> Iterator[None]:
        """Shares the read during the `with` block, and its page from then on, as long as a watcher has it."""
        reads = self._reads
        reads[read.request] = read
        try:
            yield
        finally:
            if reads is self._reads:  # otherwise the page is of a log that is lost
                self._end(read)

    def _end(self, read: SharedRead) -> None:
        if self._reads.get(read.request) is read:
            del self._reads[read.request]
        after, limit, last_seq = read.request
        if read.page is not None and read.page.last >= min(after + limit, last_seq):  # a lagging primary gives less
            if self._pages is None:
                self._pages = WeakValueDictionary()
            self._pages[read.request] = read.page

    def clear(self) -> None:
        """Shares none of these pages any more: the log that they were read from is lost."""
        self._reads, self._pages = {}, None

    @property
    def is_empty(self) -> bool:
        """Returns True if no watcher has a page, or reads one."""
        return not self._reads and not self._pages
