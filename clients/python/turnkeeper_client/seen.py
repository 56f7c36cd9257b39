"""What has been delivered already, so that nothing is delivered twice."""

from collections import OrderedDict
from dataclasses import dataclass, field

from turnkeeper_client.pb.v1.event_pb2 import Event

# Turns whose drafts are remembered; one turn is active in a session, some may wait.
REMEMBERED_TURNS = 64


class Seen:
    """The place of one reader in one session's stream."""

    def __init__(self) -> None:
        self._sequence = 0
        self._drafts = Drafts()

    def admit(self, event: Event) -> Event | None:
        """The event when it is new, a delta without the beginning that is known already, or None."""
        if not event.sequence:
            return self._drafts.rest(event) if event.HasField("content_delta") else event
        if event.sequence <= self._sequence:
            return None
        self._sequence = event.sequence
        self._drafts.settle(event)
        return event


@dataclass(slots=True)
class Draft:
    """What a turn's model is writing."""

    attempt: int = 0
    # (message, kind) to the offset after the last byte known.
    known: dict[tuple[str, int], int] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)

    def reach(self, attempt: int) -> None:
        """A higher attempt writes from the beginning."""
        if attempt > self.attempt:
            self.attempt = attempt
            self.known.clear()


class Drafts:
    """How far the messages that are being written are known."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, Draft] = OrderedDict()

    def settle(self, event: Event) -> None:
        """Takes note of a durable event."""
        if not event.turn_id:
            return
        draft = self._draft(event.turn_id)
        draft.reach(event.attempt)
        if event.HasField("attempt_superseded"):
            draft.reach(event.attempt_superseded.superseded_attempt + 1)
        if event.HasField("message_completed"):
            draft.completed.add(event.message_completed.message_id)

    def rest(self, event: Event) -> Event | None:
        """The delta without what is known of it.

        None when all of it is known, when its attempt or its message is over, or when bytes before it are missing:
        then only `message_completed` can tell the text. A message's first delta may begin anywhere: a cursor can
        lead into the middle.
        """
        delta = event.content_delta
        draft = self._draft(event.turn_id)
        if delta.attempt < draft.attempt or delta.message_id in draft.completed:
            return None
        draft.reach(delta.attempt)
        key = (delta.message_id, delta.kind)
        data = delta.text.encode()
        known = draft.known.get(key, delta.offset)
        fresh = data[max(known - delta.offset, 0) :]
        if delta.offset > known or not fresh or is_inside_character(fresh):
            return None
        draft.known[key] = known + len(fresh)
        if len(fresh) == len(data):
            return event
        cut = Event()
        cut.CopyFrom(event)
        cut.content_delta.offset = known
        cut.content_delta.text = fresh.decode()
        cut.content_delta.restarts = False
        return cut

    def _draft(self, turn_id: str) -> Draft:
        draft = self._turns.setdefault(turn_id, Draft())
        self._turns.move_to_end(turn_id)
        if len(self._turns) > REMEMBERED_TURNS:
            self._turns.popitem(last=False)
        return draft


def is_inside_character(data: bytes) -> bool:
    """Whether it begins in the middle of a UTF-8 character."""
    return data[0] & 0xC0 == 0x80
