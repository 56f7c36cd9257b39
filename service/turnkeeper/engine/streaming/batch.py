"""What a stream has, and what of it goes into one response."""

from dataclasses import dataclass
from typing import Final

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.store.changeset import StoredEvent

BATCH_EVENTS = 64
BATCH_BYTES = 64 * 1024
NONE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """What a stream has. Empty `kinds` and `turn_id` are all. `forever` False: it ends once caught up."""

    kinds: frozenset[str] = NONE
    turn_id: str = ""
    previews: bool = False
    forever: bool = True

    def has(self, event: StoredEvent) -> bool:
        return (not self.kinds or event.kind in self.kinds) and self.follows(event.turn_id)

    def follows(self, turn_id: str) -> bool:
        return not self.turn_id or turn_id == self.turn_id


EVERYTHING: Final = EventFilter()


class Batch:
    """Goes into one response. Without events it is a heartbeat. Readers at the same place get the same one."""

    __slots__ = ("caught_up", "events", "full", "kinds", "place", "preview", "size", "wire")

    def __init__(self, place: StreamPosition) -> None:
        self.events: list[bytes] = []
        self.size = 0
        self.place = place
        self.caught_up = False
        self.kinds = NONE
        """The kinds of the durable events that were passed, wanted or not."""
        self.full = False
        """Something did not fit; it comes with the next batch."""
        self.preview: Preview | None = None
        """Whose text is in it."""
        self.wire = b""
        """Left here by the first who made a response of it, for the others."""

    def add(self, payload: bytes) -> bool:
        """False when it does not fit. A batch has room for one event, however large."""
        size = self.size + len(payload)
        if self.events and (len(self.events) >= BATCH_EVENTS or size > BATCH_BYTES):
            self.full = True
            return False
        self.events.append(payload)
        self.size = size
        return True

    @property
    def counts(self) -> bool:
        """What it says of a text that is being written still stands."""
        return self.preview is None or self.preview.stands
