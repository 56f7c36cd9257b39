"""What one client heard of a session, in the order in which it came over the wire."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from turnkeeper_client.pb.v1.event_pb2 import DELTA_KIND_TEXT, ContentDelta, Event


@dataclass(slots=True)
class Heard:
    """Events as they came; deltas and durable events apart."""

    durable: list[Event] = field(default_factory=list)
    deltas: list[ContentDelta] = field(default_factory=list)

    def add(self, event: Event) -> str:
        """Keep it; the text that it adds, if any."""
        if event.sequence:
            self.durable.append(event)
        elif event.HasField("content_delta") and event.content_delta.kind == DELTA_KIND_TEXT:
            self.deltas.append(event.content_delta)
            return event.content_delta.text
        return ""

    def has(self, kind: str) -> bool:
        return kind in self.kinds

    @property
    def kinds(self) -> list[str]:
        """The names of the durable events."""
        return [str(event.WhichOneof("payload")) for event in self.durable]

    @property
    def sequences(self) -> list[int]:
        return [event.sequence for event in self.durable]

    @property
    def attempt(self) -> int:
        """The attempt that writes the latest text."""
        return max((delta.attempt for delta in self.deltas), default=0)

    def of_turn(self, turn_id: str) -> list[Event]:
        """The durable events of one turn; those of the session itself belong to none."""
        return [event for event in self.durable if event.turn_id == turn_id]

    def of(self, attempt: int) -> list[ContentDelta]:
        """The deltas of one attempt."""
        return [delta for delta in self.deltas if delta.attempt == attempt]


def joined(deltas: Sequence[ContentDelta]) -> bytes:
    """The pieces one after the other, just as they came: UTF-8."""
    return "".join(delta.text for delta in deltas).encode()


def end(deltas: Sequence[ContentDelta]) -> int:
    """The byte after the last piece, by the offset that it carries."""
    return deltas[-1].offset + len(deltas[-1].text.encode()) if deltas else 0


def misplaced(deltas: Sequence[ContentDelta], *, begin: int = 0) -> list[str]:
    """The pieces that do not begin where the one before them ended."""
    found: list[str] = []
    for delta in deltas:
        if delta.offset != begin:
            found.append(f"a piece at byte {delta.offset} where byte {begin} is next")
        begin = delta.offset + len(delta.text.encode())
    return found


def answer(events: Sequence[Event]) -> bytes:
    """The text of the last message that the model completed: what is stored, UTF-8."""
    whole = [event.message_completed for event in events if event.HasField("message_completed")]
    return "".join(part.text for part in whole[-1].content).encode() if whole else b""


def numbered(events: Sequence[Event]) -> str:
    """1 turn_started, 2 …: for people."""
    return ", ".join(f"{event.sequence} {event.WhichOneof('payload')}" for event in events)
