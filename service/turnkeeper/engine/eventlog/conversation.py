"""What this replica knows of a session's conversation, kept up with the log."""

from collections.abc import Callable, Sequence

from turnkeeper.domain.event import HISTORY, Event, SessionRestored
from turnkeeper.domain.history import History, HistoryEntry
from turnkeeper.domain.message import Message
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import StoredEvent
from turnkeeper.store.contract import EventLog

_PAGE = 500
_CREATED = 1
"""Every log begins with `session_created`, which says nothing to a model."""


class Conversation:
    """The conversation up to one place in the log.

    Others write into the log while a turn runs (a rejected call gets its result from the decision), so that what the
    owner wrote itself is not all there is.
    """

    def __init__(self, store: EventLog, *, key: SessionKey, decode: Callable[[StoredEvent], Event]) -> None:
        self._store = store
        self._key = key
        self._decode = decode
        self._history = History()
        self._through = _CREATED

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return self._history.size

    async def read(self, *, until: int) -> None:
        """Take in what the log holds up to this number. Raises ServiceUnavailable; then it may be asked again."""
        if self._through >= until:
            return
        key = self._key
        if (await self._store.last_seqs([key])).get(key, 0) < until:
            # A new primary shows less than is known of: what it hides would be missed for good.
            raise ServiceUnavailable(session_id=key.session_id)
        found = await self._log(after=self._through, until=until)
        if any(isinstance(event.payload, SessionRestored) for event in found):
            self._history = History.of(await self._log(after=_CREATED, until=until))
        else:
            for event in found:
                self._history.add(event)
        self._through = until

    def take(self, events: Sequence[Event]) -> None:
        """What this replica itself has stored, in the order of the log. What others stored before is read first."""
        for event in events:
            if event.sequence == self._through + 1:
                self._history.add(event)
                self._through = event.sequence

    def entries(self) -> tuple[HistoryEntry, ...]:
        return self._history.entries()

    def messages(self, instructions: str) -> tuple[Message, ...]:
        """What the model is sent."""
        return self._history.messages(instructions)

    async def _log(self, *, after: int, until: int) -> list[Event]:
        found: list[Event] = []
        while True:
            page = await self._store.events(self._key, after=after, limit=_PAGE, kinds=HISTORY, until=until)
            found.extend(self._decode(stored) for stored in page)
            if len(page) < _PAGE:
                return found
            after = page[-1].sequence
