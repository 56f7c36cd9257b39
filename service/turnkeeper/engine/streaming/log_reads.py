"""Pages of a session's log, for readers whom the ring does not reach. None is kept: it lives with its readers."""

from collections.abc import Awaitable, Callable, Sequence

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.wakeups import Broadcast
from turnkeeper.store.changeset import StoredEvent


class LogPage:
    """The events after a number, in order and without a gap; and what its readers have made of them."""

    __slots__ = ("_after", "events", "found", "last", "made", "size")

    def __init__(self, after: int, found: Sequence[StoredEvent]) -> None:
        """`found`: in order. What lies beyond a gap is not the page's."""
        self._after = after
        self.found = found
        numbers = [event.sequence for event in found]
        if numbers != list(range(after + 1, after + 1 + len(numbers))):
            found = [event for number, event in enumerate(found, after + 1) if event.sequence == number]
        self.events = found
        self.last = after + len(found)
        self.size = sum([len(event.payload) for event in found])
        self.made: dict[tuple[StreamPosition, EventFilter], Batch] | None = None
        """Where several read it: for the next who comes to the same place with the same wish."""

    def beyond(self, sequence: int) -> Sequence[StoredEvent]:
        """What comes after this event of the page."""
        return self.events[sequence - self._after :]


class SharedRead:
    """A page that is being read. Who asks for the same meanwhile waits for it, unless something newer was heard of.

    So a hundred who come back at the same time, or hear of another replica's event, read the log once.
    """

    __slots__ = ("_asked", "_landed", "_page", "_shared")

    def __init__(self, after: int, limit: int, *, heard: int) -> None:
        self._asked = (after, limit, heard)
        self._landed = Broadcast()
        self._page: LogPage | None = None
        self._shared = False

    def serves(self, after: int, limit: int, *, heard: int) -> bool:
        return self._asked == (after, limit, heard)

    async def read(self, find: Callable[[], Awaitable[Sequence[StoredEvent]]]) -> LogPage:
        """By who asks first."""
        try:
            self._page = page = LogPage(self._asked[0], await find())
            page.made = {} if self._shared else None
            return page
        finally:
            self._landed.fire()

    async def wait(self) -> LogPage | None:
        """By the others. None: its reader left, or failed; every one for himself."""
        self._shared = True
        landing = self._landed.next()
        try:
            await landing
        finally:
            self._landed.leave(landing)
        return self._page
