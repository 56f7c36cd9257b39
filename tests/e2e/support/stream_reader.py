"""A strict reader of a session's stream: every rule that the API gives to streams is checked as responses come."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tests.harness import Stubs, new_request_id, text_parts
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2

Response = session_pb2.WatchEventsResponse | chat_pb2.StreamMessageResponse

NO_LONGER_COUNTS = frozenset({"attempt_failed", "attempt_superseded", "turn_cancelled", "turn_failed", "turn_retried"})
"""After these the text of the message that was being written does not count."""

STARTS = frozenset({"after", "after_sequence", "live_only"})


@dataclass(slots=True)
class Reader:
    """A reader of one session, over any number of streams.

    `whole`: it reads all durable events, so that their numbers have no gap. `through` is the last durable event
    that was delivered or filtered out.
    """

    through: int = 0
    whole: bool = True
    cursor: str = ""
    events: list[event_pb2.Event] = field(default_factory=list)
    deltas: list[event_pb2.Event] = field(default_factory=list)
    texts: dict[str, bytearray] = field(default_factory=dict)
    responses: int = 0
    heartbeats: int = 0
    caught_up: int = 0
    restarts: int = 0
    turn: chat_pb2.Turn | None = None
    _attempts: dict[str, int] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)
    _turns: dict[str, str] = field(default_factory=dict)
    _sees_all: bool = True
    """No `types` leave out what ends a message: what `restarts` must be is known."""
    _unfinished: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By turn: the message and attempt whose text was shown last, unless it became whole."""

    def take(self, response: Response) -> None:
        """Adds one response. Raises AssertionError if it breaks a rule of streams."""
        self.responses += 1
        self.heartbeats += not response.events and not response.caught_up
        assert response.cursor
        assert len(response.events) <= 64
        assert len(response.events) == 1 or sum(event.ByteSize() for event in response.events) <= 64 * 1024
        for event in response.events:
            if event.sequence:
                self._durable(event)
            else:
                self._delta(event)
        assert response.through_sequence >= self.through
        self.through = response.through_sequence
        self.cursor = response.cursor
        self.caught_up += response.caught_up
        assert self.caught_up <= 1, "caught_up came twice"
        if isinstance(response, chat_pb2.StreamMessageResponse) and response.HasField("turn"):
            self.turn = response.turn

    def reattached(self, *, at_cursor: bool, sees_all: bool = True) -> None:
        """Begins a new stream; only at a cursor does the service know what was shown before."""
        self.caught_up = 0
        self._sees_all = sees_all
        if not at_cursor:
            self._unfinished.clear()

    @property
    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("payload")) for event in self.events]

    @property
    def sequences(self) -> list[int]:
        return [event.sequence for event in self.events]

    def text(self, message_id: str) -> str:
        """Returns the text of this message's deltas."""
        return self.texts.get(message_id, bytearray()).decode()

    def screen(self) -> str:
        """Returns the text of a client that appends each delta and clears at `restarts`, for a turn of one message."""
        shown = ""
        for event in self.deltas:
            delta = event.content_delta
            shown = delta.text if delta.restarts else shown + delta.text
        return shown

    def completed(self) -> list[event_pb2.Event]:
        return [event for event in self.events if event.HasField("message_completed")]

    def _durable(self, event: event_pb2.Event) -> None:
        assert event.sequence > self.through, f"event {event.sequence} came again"
        if self.whole:
            assert event.sequence == self.through + 1, f"event {event.sequence} follows {self.through}"
        self.through = event.sequence
        self.events.append(event)
        kind = event.WhichOneof("payload")
        if kind == "message_completed":
            message = event.message_completed
            self._over.add(message.message_id)
            self._unfinished.pop(event.turn_id, None)
            if message.message_id in self.texts:
                assert self.text(message.message_id) == "".join(part.text for part in message.content)
        elif kind in NO_LONGER_COUNTS:
            self._over |= {message_id for message_id, turn_id in self._turns.items() if turn_id == event.turn_id}

    def _delta(self, event: event_pb2.Event) -> None:
        delta = event.content_delta
        assert delta.message_id not in self._over, "a delta of a message that is whole, or does not count"
        assert delta.attempt >= self._attempts.get(event.turn_id, 0), "a delta of a superseded attempt"
        assert delta.text or delta.restarts, "a delta without text that withdraws nothing"
        self._attempts[event.turn_id] = delta.attempt
        self._turns[delta.message_id] = event.turn_id
        self._check_restart(event)
        text = self.texts.setdefault(delta.message_id, bytearray())
        assert delta.offset == len(text), f"a delta at byte {delta.offset}, when {len(text)} bytes had come"
        text.extend(delta.text.encode())
        self.deltas.append(event)

    def _check_restart(self, event: event_pb2.Event) -> None:
        delta = event.content_delta
        writing = (delta.message_id, delta.attempt)
        shown = self._unfinished.get(event.turn_id, writing)
        if self._sees_all:
            assert delta.restarts == (shown != writing), f"restarts is {delta.restarts}: {shown}, then {writing}"
        if delta.restarts:
            self.restarts += 1
            self.texts.pop(delta.message_id, None)
        self._unfinished[event.turn_id] = writing


async def watch(
    stubs: Stubs, session_id: str, reader: Reader, *, previews: bool = True, follow: bool = True, **fields: Any
) -> AsyncIterator[Reader]:
    """Watches from the reader's cursor on, unless a start is given. Yields the reader after each response."""
    if reader.cursor and not fields.keys() & STARTS:
        fields["after"] = reader.cursor
    reader.reattached(at_cursor=bool(fields.get("after")), sees_all=not fields.get("types"))
    call = stubs.sessions.WatchEvents(
        session_pb2.WatchEventsRequest(session_id=session_id, follow=follow, previews=previews, **fields)
    )
    try:
        async for response in call:
            reader.take(response)
            yield reader
    finally:
        call.cancel()


async def stream(
    stubs: Stubs, session_id: str, text: str, reader: Reader, *, request_id: str = "", **fields: Any
) -> AsyncIterator[Reader]:
    """Streams a message into the reader. Yields the reader after each response."""
    reader.reattached(at_cursor=bool(reader.cursor))
    request = chat_pb2.StreamMessageRequest(
        session_id=session_id,
        request_id=request_id or new_request_id(),
        content=text_parts(text),
        after=reader.cursor,
        **fields,
    )
    call = stubs.chat.StreamMessage(request)
    try:
        async for response in call:
            reader.take(response)
            yield reader
    finally:
        call.cancel()
