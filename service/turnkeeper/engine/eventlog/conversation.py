"""A session's conversation as a model reads it, built from the event log and kept up with it."""

from collections.abc import Callable, Sequence
from functools import partial

from turnkeeper.domain.event import HISTORY, Event, SessionRestored
from turnkeeper.domain.history import History, HistoryEntry
from turnkeeper.domain.message import Message
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.event_loop import Slices, off_loop
from turnkeeper.store.changeset import StoredEvent
from turnkeeper.store.contract import EventLog

_PAGE = 500
"""Events of one read, at most."""
LARGE = 1000
"""Events from which on a history is built in a thread: it takes 5 ms or more."""
_FIRST_SEQUENCE = 1
"""Every log begins with `session_created`, which holds nothing for a model."""


class Conversation:
    """The conversation up to one event of the log.

    While a turn runs, others write into the log too: the decision that rejects a call also stores its result. So the
    owner reads the log up to its snapshot, besides adding what it stored itself.
    """

    def __init__(self, store: EventLog, *, key: SessionKey, decode: Callable[[StoredEvent], Event]) -> None:
        self._store = store
        self._key = key
        self._decode = decode
        self._history = History()
        self._last_sequence = _FIRST_SEQUENCE

    @property
    def size(self) -> int:
        """Returns about how many bytes it takes."""
        return self._history.size

    async def read(self, *, until: int) -> None:
        """Adds the log's events up to the one numbered `until`.

        Raises ServiceUnavailable if the database is unavailable, or does not show the log that far. The conversation is
        then as before, and `read` may be called again.
        """
        if self._last_sequence >= until:
            return
        key = self._key
        if (await self._store.last_seqs([key])).get(key, 0) < until:
            # A new primary may show less of the log than was read before: the events it hides would never be added.
            raise ServiceUnavailable(session_id=key.session_id)
        events = await self._events(after=self._last_sequence, until=until)
        is_new, is_large = self._last_sequence == _FIRST_SEQUENCE, len(events) > LARGE
        if not is_new and (is_large or any(isinstance(event.payload, SessionRestored) for event in events)):
            events, is_new = await self._events(after=_FIRST_SEQUENCE, until=until), True
        if is_new:
            self._history = await off_loop(partial(History.of, events), large=len(events) > LARGE)
        else:
            for event in events:
                self._history.add(event)
        self._last_sequence = until

    def extend(self, events: Sequence[Event]) -> None:
        """Adds events that this replica stored, in the log's order.

        Ignores those that do not follow the last event directly: `read` adds them, with the ones stored in between.
        """
        for event in events:
            if event.sequence == self._last_sequence + 1:
                self._history.add(event)
                self._last_sequence = event.sequence

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
