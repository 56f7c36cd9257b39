"""Remembers what was delivered to a reader, so that nothing is delivered twice."""

from collections import OrderedDict
from dataclasses import dataclass, field

from turnkeeper_client.pb.v1.event_pb2 import Event

# Turns whose partial messages are remembered; one turn is active in a session, some may wait.
REMEMBERED_TURNS = 64


class DeliveredEvents:
    """How far one reader has come in one session's stream."""

    def __init__(self) -> None:
        self._sequence = 0
        self._partial_messages = PartialMessages()

    def admit(self, event: Event) -> Event | None:
        """Returns a new event, the new end of a delta that is known in part, or None if nothing of it is new."""
        if not event.sequence:
            return self._partial_messages.rest(event) if event.HasField("content_delta") else event
        if event.sequence <= self._sequence:
            return None
        self._sequence = event.sequence
        self._partial_messages.settle(event)
        return event


@dataclass(slots=True)
class PartialMessage:
    """How far the messages are known that one turn's model is writing."""

    attempt: int = 0
    # (message, kind) to the offset after the last byte known.
    known: dict[tuple[str, int], int] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)

    def reach(self, attempt: int) -> None:
        """Forgets the text of lower attempts: a higher attempt writes from the beginning."""
        if attempt > self.attempt:
            self.attempt = attempt
            self.known.clear()


class PartialMessages:
    """How far the unfinished messages of a session's latest turns are known."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, PartialMessage] = OrderedDict()

    def settle(self, event: Event) -> None:
        """Applies a durable event: it may end an attempt or complete a message."""
        if not event.turn_id:
            return
        partial = self._partial_message(event.turn_id)
        partial.reach(event.attempt)
        if event.HasField("attempt_superseded"):
            partial.reach(event.attempt_superseded.superseded_attempt + 1)
        if event.HasField("message_completed"):
            partial.completed.add(event.message_completed.message_id)

    def rest(self, event: Event) -> Event | None:
        """Returns the delta without the part that is known.

        Returns None if all of it is known, if its attempt or its message is over, or if bytes before it are missing:
        then only `message_completed` has the text. A message's first delta may begin anywhere: a cursor can
        lead into the middle.
        """
        delta = event.content_delta
        partial = self._partial_message(event.turn_id)
        if delta.attempt < partial.attempt or delta.message_id in partial.completed:
            return None
        partial.reach(delta.attempt)
        key = (delta.message_id, delta.kind)
        data = delta.text.encode()
        if delta.restarts and not data:
            return event
        known = partial.known.get(key, delta.offset)
        fresh = data[max(known - delta.offset, 0) :]
        if delta.offset > known or not fresh or begins_inside_character(fresh):
            return None
        partial.known[key] = known + len(fresh)
        if len(fresh) == len(data):
            return event
        cut = Event()
        cut.CopyFrom(event)
        cut.content_delta.offset = known
        cut.content_delta.text = fresh.decode()
        cut.content_delta.restarts = False
        return cut

    def _partial_message(self, turn_id: str) -> PartialMessage:
        partial = self._turns.setdefault(turn_id, PartialMessage())
        self._turns.move_to_end(turn_id)
        if len(self._turns) > REMEMBERED_TURNS:
            self._turns.popitem(last=False)
        return partial


def begins_inside_character(data: bytes) -> bool:
    """Returns True if the bytes begin in the middle of a UTF-8 character."""
    return data[0] & 0xC0 == 0x80
