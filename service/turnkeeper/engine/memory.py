"""What a run knows of its session's conversation, kept up with the log."""

from collections.abc import Callable

from turnkeeper.domain.event import HISTORY, Event
from turnkeeper.domain.history import History
from turnkeeper.domain.message import Message
from turnkeeper.engine.feed import Key
from turnkeeper.store.contract import Store
from turnkeeper.store.step import StoredEvent

_PAGE = 500


class Memory:
    """The conversation up to one place in the log.

    Others write into the log while a turn runs (a rejected call gets its result from the decision), so that what the
    owner wrote itself is not all there is.
    """

    def __init__(self, store: Store, *, key: Key, decode: Callable[[StoredEvent], Event]) -> None:
        self._store = store
        self._key = key
        self._decode = decode
        self._history = History()
        self._through = 0

    async def read(self, *, until: int) -> None:
        """Take in what the log holds up to this number. Raises ServiceUnavailable; then it may be asked again."""
        while self._through < until:
            page = await self._store.events(*self._key, after=self._through, limit=_PAGE, kinds=HISTORY, until=until)
            for stored in page:
                self._history.add(self._decode(stored))
            self._through = page[-1].sequence if len(page) == _PAGE else until

    def add(self, event: Event) -> None:
        """The log's next event, which the owner itself has stored."""
        self._history.add(event)
        self._through = event.sequence

    def messages(self, instructions: str) -> tuple[Message, ...]:
        """What the model is sent."""
        return self._history.messages(instructions)
