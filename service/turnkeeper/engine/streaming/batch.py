"""What a watcher wants of a stream, and the content of one response."""

from dataclasses import dataclass
from typing import Final

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.store.changeset import StoredEvent

BATCH_EVENTS = 64
"""Events of one response at most."""
BATCH_BYTES = 64 * 1024
"""Bytes of events of one response at most, unless a single event is larger."""
NONE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """What a watcher wants of a session's stream."""

    kinds: frozenset[str] = NONE
    """The kinds of durable events; empty for all."""
    turn_id: str = ""
    """The turn whose events count; empty for all, those of the session included."""
    previews: bool = False
    """Deltas of the message that is being written, too."""
    forever: bool = True
    """False: the stream ends once it has caught up."""

    def has(self, event: StoredEvent) -> bool:
        """Returns True if the watcher wants this event."""
        return (not self.kinds or event.kind in self.kinds) and self.has_turn(event.turn_id)

    def has_turn(self, turn_id: str) -> bool:
        """Returns True if the watcher wants events of this turn."""
        return not self.turn_id or turn_id == self.turn_id


EVERYTHING: Final = EventFilter()


class Batch:
    """The content of one response. Without events it is a keep-alive. Watchers at the same position share one."""

    __slots__ = ("caught_up", "events", "full", "kinds", "position", "preview", "size", "wire")

    def __init__(self, position: StreamPosition) -> None:
        """Makes an empty batch that begins and ends at `position`."""
        self.events: list[bytes] = []
        """The wire forms of the events, in order."""
        self.size = 0
        """Their bytes."""
        self.position = position
        """Where the stream is after this batch."""
        self.caught_up = False
        """The stream reached the log's end with this batch for the first time."""
        self.kinds = NONE
        """The kinds of the durable events up to `position`, also of those that the filter left out."""
        self.full = False
        """An event did not fit; the next batch begins with it."""
        self.preview: Preview | None = None
        """The preview whose text is in it."""
        self.wire = b""
        """The encoded response, cached here by the first watcher that sends it, for the others."""

    def add(self, payload: bytes) -> bool:
        """Adds an event. Returns False if it does not fit; an empty batch has room for any one event."""
        size = self.size + len(payload)
        if self.events and (len(self.events) >= BATCH_EVENTS or size > BATCH_BYTES):
            self.full = True
            return False
        self.events.append(payload)
        self.size = size
        return True

    @property
    def valid(self) -> bool:
        """Returns True unless it has text of a preview that no longer counts."""
        return self.preview is None or self.preview.valid
