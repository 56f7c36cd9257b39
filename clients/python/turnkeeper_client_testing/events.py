"""Short names for the events of one session."""

from collections.abc import Sequence

from turnkeeper_client.pb.v1.chat_pb2 import TURN_STATE_COMPLETED, StreamMessageResponse, Turn, TurnState
from turnkeeper_client.pb.v1.event_pb2 import (
    DELTA_KIND_TEXT,
    AttemptFailed,
    AttemptSuperseded,
    ContentDelta,
    Event,
    MessageCompleted,
    TurnCompleted,
    TurnRetried,
    TurnStarted,
)
from turnkeeper_client.pb.v1.message_pb2 import Part
from turnkeeper_client.pb.v1.session_pb2 import WatchEventsResponse


def started(sequence: int, *, attempt: int = 1) -> Event:
    return event(sequence, attempt, turn_started=TurnStarted(message_id="m1"))


def delta(offset: int, text: str, *, attempt: int = 1, message: str = "m1", restarts: bool = False) -> Event:
    content = ContentDelta(
        message_id=message, attempt=attempt, offset=offset, kind=DELTA_KIND_TEXT, text=text, restarts=restarts
    )
    return event(0, attempt, content_delta=content)


def completed(sequence: int, text: str, *, attempt: int = 1, message: str = "m1") -> Event:
    whole = MessageCompleted(message_id=message, content=[Part(text=text)])
    return event(sequence, attempt, message_completed=whole)


def failed(sequence: int, *, attempt: int = 1) -> Event:
    return event(sequence, attempt, attempt_failed=AttemptFailed())


def superseded(sequence: int, *, attempt: int) -> Event:
    lost = AttemptSuperseded(superseded_attempt=attempt - 1, message_id="m2")
    return event(sequence, attempt, attempt_superseded=lost)


def retried(sequence: int, *, attempt: int) -> Event:
    return event(sequence, attempt, turn_retried=TurnRetried(message_id="m2"))


def done(sequence: int, *, attempt: int = 1) -> Event:
    return event(sequence, attempt, turn_completed=TurnCompleted(message_id="m1"))


def unknown(sequence: int, *, ignorable: bool) -> Event:
    """Returns an event with a payload that this version does not know: field 99, empty."""
    plain = Event(session_id="s1", sequence=sequence, turn_id="t1", attempt=1, ignorable=ignorable)
    return Event.FromString(plain.SerializeToString() + bytes([0x9A, 0x06, 0x00]))


def event(sequence: int, attempt: int, **payload: object) -> Event:
    return Event(session_id="s1", sequence=sequence, turn_id="t1", attempt=attempt, **payload)  # type: ignore[arg-type]


def watch_response(*events: Event, cursor: str = "", through: int = 0, caught_up: bool = False) -> WatchEventsResponse:
    """Returns a response of WatchEvents."""
    return WatchEventsResponse(events=events, cursor=cursor, through_sequence=through, caught_up=caught_up)


def message_response(*events: Event, cursor: str = "") -> StreamMessageResponse:
    """Returns a response of StreamMessage."""
    return StreamMessageResponse(events=events, cursor=cursor)


def ended(*events: Event, cursor: str = "", state: TurnState.ValueType = TURN_STATE_COMPLETED) -> StreamMessageResponse:
    """Returns the last response of StreamMessage."""
    return StreamMessageResponse(events=events, cursor=cursor, turn=Turn(turn_id="t1", session_id="s1", state=state))


def summary(events: Sequence[Event]) -> list[int | str]:
    """Numbers of durable events and texts of deltas."""
    return [event.sequence or event.content_delta.text for event in events]
