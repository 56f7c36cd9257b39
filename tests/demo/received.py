"""The events that one client received of a session, in the order of arrival."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from turnkeeper_client.pb.v1.event_pb2 import DELTA_KIND_TEXT, ContentDelta, Event


@dataclass(slots=True)
class Received:
    """Received events; deltas and durable events apart."""

    durable: list[Event] = field(default_factory=list)
    deltas: list[ContentDelta] = field(default_factory=list)

    def add(self, event: Event) -> str:
        """Adds an event. Returns the text that it adds, or an empty one."""
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
        """Returns the durable events of one turn, without those of the session itself."""
        return [event for event in self.durable if event.turn_id == turn_id]

    def of(self, attempt: int) -> list[ContentDelta]:
        """Returns the deltas of one attempt."""
        return [delta for delta in self.deltas if delta.attempt == attempt]


def joined(deltas: Sequence[ContentDelta]) -> bytes:
    """Returns the deltas' texts joined in order of arrival, as UTF-8."""
    return "".join(delta.text for delta in deltas).encode()


def end(deltas: Sequence[ContentDelta]) -> int:
    """Returns the byte after the last delta, by its offset."""
    return deltas[-1].offset + len(deltas[-1].text.encode()) if deltas else 0


def misplaced(deltas: Sequence[ContentDelta], *, begin: int = 0) -> list[str]:
    """Returns a line for each delta that does not begin where the one before it ended."""
    wrong: list[str] = []
    for delta in deltas:
        if delta.offset != begin:
            wrong.append(f"a delta at byte {delta.offset} where byte {begin} is next")
        begin = delta.offset + len(delta.text.encode())
    return wrong


def answer(events: Sequence[Event]) -> bytes:
    """Returns the text of the last completed message, as UTF-8; empty if there is none."""
    whole = [event.message_completed for event in events if event.HasField("message_completed")]
    return "".join(part.text for part in whole[-1].content).encode() if whole else b""


def numbered(events: Sequence[Event]) -> str:
    """Returns the events as `1 turn_started, 2 …`."""
    return ", ".join(f"{event.sequence} {event.WhichOneof('payload')}" for event in events)
