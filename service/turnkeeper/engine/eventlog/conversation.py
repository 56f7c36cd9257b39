"""A session's conversation as a model reads it, built from the event log and kept up with it."""

from collections.abc import Callable, Sequence
from functools import partial

from turnkeeper.domain.event import HISTORY, Event, SessionRestored
from turnkeeper.domain.history import History, HistoryEntry
from turnkeeper.domain.message import Message
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.event_loop import Slices, off_loop
from turnkeeper.store.changeset import LogEnd, StoredEvent
from turnkeeper.store.contract import EventLog

_PAGE = 500
"""Events of one read, at most."""
LARGE = 1000
"""Events from which on a history is built in a thread: it takes 5 ms or more."""
_BEGINNING = LogEnd(1)
"""Every log begins with `session_created`, which holds nothing for a model."""


class Conversation:
    """The conversation up to one event of the log.

    While a turn runs, others write into the log too: the decision that rejects a call also stores its result. So the
    owner reads the log up to its snapshot, besides adding what it stored itself.

    It names the history that it was built from. It is never continued with the events of another one: after the
    database was restored to an older state, it is built again.
    """

    def __init__(
        self,
        store: EventLog,
        *,
        key: SessionKey,
        decode: Callable[[StoredEvent], Event],
        resized: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`resized` gets by how many bytes the conversation has grown."""
        self._store = store
        self._key = key
        self._decode = decode
        self._history = History()
        self._end = _BEGINNING
        self._resized = resized
        self._counted = 0

    @property
    def size(self) -> int:
        """Returns about how many bytes it takes."""
        return self._history.size

    @property
    def untrusted(self) -> bool:
        """Returns True if it holds what an untrusted tool returned, in whichever turn."""
        return self._history.untrusted

    async def read(self, *, until: LogEnd) -> bool:
        """Adds the log's events up to this end. One that has more of the log already stays as it is.

        Returns False if the log has no longer what the conversation was built from: it was then built again. Raises
        ServiceUnavailable if the database is unavailable, or does not show the log that far. The conversation is then
        as before, and `read` may be called again.
        """
        if self._end == until:
            return True
        is_continued = await self._is_continued(until)
        after = self._end if is_continued else _BEGINNING
        if after.sequence < until.sequence:
            await self._add(after=after, until=until)
        elif not is_continued:
            self._history, self._end = History(), _BEGINNING
            self._count(0)
        return is_continued

    async def _is_continued(self, until: LogEnd) -> bool:
        """Returns True if the log still has what the conversation was built from. Raises as `read`."""
        key, store = self._key, self._store
        if await store.holds(key, self._end, until):
            return True
        if self._end == _BEGINNING or not await store.holds(key, until):
            # A new primary may show less of the log than was read before: the events it hides would never be added.
            raise ServiceUnavailable(session_id=key.session_id)
        return False

    async def _add(self, *, after: LogEnd, until: LogEnd) -> None:
        events = await self._events(after=after.sequence, until=until.sequence)
        is_new, is_large = after == _BEGINNING, len(events) > LARGE
        if not is_new and (is_large or any(isinstance(event.payload, SessionRestored) for event in events)):
            events, is_new = await self._events(after=_BEGINNING.sequence, until=until.sequence), True
        if is_new:
            self._history = await off_loop(partial(History.of, events), large=len(events) > LARGE)
        else:
            for event in events:
                self._history.add(event)
        self._end = until
        self._count(self.size)

    def extend(self, events: Sequence[Event], *, after: LogEnd, end: LogEnd) -> None:
        """Adds events that this replica stored directly behind `after`, in the log's order. `end`: the log's then.

        Ignores them if the conversation does not end there: `read` adds them, with the ones stored in between.
        """
        is_new = self._end == _BEGINNING and bool(events) and after.sequence <= _BEGINNING.sequence
        if self._end != after and not is_new:
            return
        for event in events:
            self._history.add(event)
        self._end = end
        self._count(self.size)

    def close(self) -> None:
        """Counts as taking no memory: the caller drops it."""
        self._count(0)

    def _count(self, size: int) -> None:
        self._resized(size - self._counted)
        self._counted = size

    def entries(self) -> tuple[HistoryEntry, ...]:
        """Returns the messages with their places in the log, oldest first, for ListMessages."""
        return self._history.entries()

    def messages(self, instructions: str) -> tuple[Message, ...]:
        """Returns what a model is sent: the agent's instructions, then the messages."""
        return self._history.messages(instructions)

    async def _events(self, *, after: int, until: int) -> list[Event]:
        events: list[Event] = []
        slices = Slices()
        while True:
            page = await self._store.events(self._key, after=after, limit=_PAGE, kinds=HISTORY, until=until)
            for stored in page:
                events.append(self._decode(stored))
                await slices.step()
            if len(page) < _PAGE:
                return events
            after = page[-1].sequence
