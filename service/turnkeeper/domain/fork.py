"""Copies one session's conversation, up to a position, into the log of another: turn after turn, each one ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from turnkeeper.domain.event import (
    Event,
    MessageCompleted,
    MessageReceived,
    NewEvent,
    Payload,
    SessionRestored,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnQueued,
    TurnRetried,
    TurnStarted,
    UnknownPayload,
)
from turnkeeper.domain.history import counted
from turnkeeper.domain.message import FinishReason, Usage
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import Call, CallState, ToolClass, ToolOutcome
from turnkeeper.domain.tool_events import ClientToolRequested, ToolCalled, ToolReturned, ToolStarted
from turnkeeper.domain.turn import CancelReason, Turn, TurnOptions, TurnState

LEFT_BEHIND = '"The session was forked before this call\'s result was known; the call may have run."'
NEVER_RAN = '"The session was forked before this call ran; it did not run here."'
"""The results that a model receives for calls that were open at the position (promise I16)."""
COPIED = frozenset(
    {
        "message_received",
        "turn_queued",
        "turn_started",
        "turn_retried",
        "message_completed",
        "tool_called",
        "tool_started",
        "client_tool_requested",
        "tool_returned",
        "turn_completed",
        "turn_failed",
        "turn_cancelled",
        "session_restored",
    }
)
"""The kinds of events that are copied; a trim keeps them. Approvals stay with the session that requested them."""


@dataclass(slots=True)
class Copy:
    """The events, turns and calls of a fork.

    A turn's message stands where the turn began, so that there is no queue; one whose turn had not begun is left out.
    What was open at the position is closed: calls by the results above, the turn as CANCELLED with FORKED. Usage is
    counted from what is copied.
    """

    session: Session
    """The fork."""
    opening: int
    """How many events of the fork's own come before the copied ones."""
    options: Mapping[str, TurnOptions]
    """The options of the source's turns, by turn id."""
    called: Mapping[str, Event]
    """The source's `tool_called` events, by call id, also those after the position."""
    events: list[NewEvent] = field(default_factory=list)
    turns: dict[str, Turn] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    _waiting: dict[str, Event] = field(default_factory=dict)
    """Messages whose turns have not begun, by turn id."""
    _arrived: str = ""
    """The turn of the newest message, until a `turn_queued` or another event shows whether it begins at once."""
    _open: str = ""
    """The turn that has begun and not ended."""
    _requests: Mapping[str, int] = field(default_factory=dict)
    """The calls that the last message of the model requests, with their places in it."""

    def take(self, events: Sequence[Event]) -> None:
        """Copies the source's events of the kinds in COPIED, from the first one to the position."""
        for event in counted(events):
            self._add(event)
        self._close()
        self.session = replace(self.session, usage=sum((turn.usage for turn in self.turns.values()), Usage()))

    def _add(self, event: Event) -> None:
        """Copies one event."""
        payload = event.payload
        if isinstance(payload, MessageReceived):
            self._settle_arrived()
            self._waiting[event.turn_id] = event
            self._arrived = event.turn_id
            return
        if isinstance(payload, TurnQueued):
            self._arrived = ""
            return
        self._settle_arrived()
        if isinstance(payload, SessionRestored):
            self._close()
        elif isinstance(payload, TurnStarted):
            self._begin(event.turn_id)
            self._append(event, payload)
        elif event.turn_id in self.turns and not isinstance(payload, UnknownPayload):
            self._add_to_turn(event, payload)

    def _add_to_turn(self, event: Event, payload: Payload) -> None:
        """Copies an event of a turn that has begun."""
        turn = self.turns[event.turn_id]
        match payload:
            case TurnRetried():
                self._open = turn.id
                again = replace(turn, state=TurnState.PENDING, end_time=None, error=None, answer=(), iterations=0)
                self._put(again.also_caused_by(payload.principal, payload.through))
            case MessageCompleted():
                self._add_message(turn, payload)
            case ToolStarted(tool_call_id=call_id, key=key):
                used = replace(turn.usage, tool_calls=turn.usage.tool_calls + 1)
                self._put(replace(turn, usage=used))
                self.calls[call_id] = replace(self.calls[call_id], started=True, key=key)
            case ClientToolRequested(tool_call_id=call_id):
                self.calls[call_id] = replace(self.calls[call_id], started=True, state=CallState.STARTED)
            case ToolCalled():
                self._add_call(event, payload)
            case ToolReturned():
                self._put(turn.also_caused_by(payload.submitted_by, payload.submitted_through))
                self._return_call(payload)
            case TurnCompleted() | TurnFailed() | TurnCancelled():
                payload = replace(payload, usage=turn.usage)
                self._end_turn(turn, payload, at=event.create_time)
            case _:
                pass
        self._append(event, payload)

    def _settle_arrived(self) -> None:
        """Begins the turn of a message that was not queued, unless another turn is open."""
        if self._arrived and not self._open:
            self._begin(self._arrived)

    def _begin(self, turn_id: str) -> None:
        """Begins a turn with its message, if the message waits."""
        event = self._waiting.pop(turn_id, None)
        if event is None or not isinstance(event.payload, MessageReceived):
            return
        self._arrived, self._open = "", turn_id
        self.turns[turn_id] = Turn(
            id=turn_id,
            tenant=self.session.tenant,
            session_id=self.session.id,
            principal=event.payload.principal,
            agent=self.session.agent,
            agent_version=self.session.agent_version,
            state=TurnState.PENDING,
            message_id=event.payload.message_id,
            next_message_id="",
            options=self.options.get(turn_id, TurnOptions()),
            first_sequence=self.opening + len(self.events) + 1,
            create_time=event.create_time,
            update_time=event.create_time,
            through=event.payload.through,
        ).also_caused_by(event.payload.through)
        self._append(event, event.payload)

    def _add_message(self, turn: Turn, message: MessageCompleted) -> None:
        """Records a message of the model in its turn; an interrupted one counts nothing."""
        self._requests = {request.tool_call_id: place for place, request in enumerate(message.tool_requests)}
        if message.finish_reason is FinishReason.INTERRUPTED:
            return
        self._put(
            replace(
                turn,
                iterations=turn.iterations + 1,
                usage=turn.usage + message.usage,
                finish_reason=message.finish_reason,
                answer=() if message.tool_requests else message.content,
                next_message_id=message.message_id,
            )
        )

    def _add_call(self, event: Event, called: ToolCalled) -> None:
        """Adds a call as READY, at its place among the requests of its message."""
        self.calls[called.tool_call_id] = Call(
            id=called.tool_call_id,
            tenant=self.session.tenant,
            session_id=self.session.id,
            turn_id=event.turn_id,
            message_id=called.message_id,
            position=self._requests.get(called.tool_call_id, len(self._requests)),
            tool=called.tool,
            arguments_json=called.arguments_json,
            arguments_hash=called.arguments_hash,
            tool_class=called.tool_class,
            action=called.action,
            state=CallState.READY,
            key="",
        )

    def _return_call(self, returned: ToolReturned) -> None:
        """Ends a call, and records it in the session if its outcome is unknown."""
        call = self.calls[returned.tool_call_id]
        self.calls[call.id] = replace(call, state=CallState.RETURNED, outcome=returned.outcome)
        cut = call.state is CallState.STARTED and returned.outcome is ToolOutcome.CANCELLED
        if returned.outcome is ToolOutcome.UNKNOWN or (cut and not call.tool_class.may_start_again):
            self.session = self.session.with_unknown(call.tool, call.id)

    def _end_turn(self, turn: Turn, payload: TurnCompleted | TurnFailed | TurnCancelled, *, at: datetime) -> None:
        """Ends a turn as its last event has it."""
        match payload:
            case TurnCompleted(stop_reason=stop_reason):
                turn = replace(turn.ended_as(TurnState.COMPLETED, at=at), stop_reason=stop_reason)
            case TurnFailed(error=error):
                turn = replace(turn.ended_as(TurnState.FAILED, at=at), error=error)
            case TurnCancelled():
                turn = turn.ended_as(TurnState.CANCELLED, at=at)
        self._put(turn)
        self._open = ""

    def _close(self) -> None:
        """Ends the conversation here: closes what is open and leaves out what waits."""
        self._close_turn()
        self._settle_arrived()
        self._close_turn()
        self._waiting, self._arrived = {}, ""

    def _close_turn(self) -> None:
        """Closes the open calls of the open turn, then cancels it with FORKED."""
        if not self._open:
            return
        turn = self.turns[self._open]
        for call_id in self._requests:
            event = self.called.get(call_id)
            if call_id not in self.calls and event and isinstance(event.payload, ToolCalled):
                self._add_call(event, event.payload)  # stored in one changeset with its message
                self._append(event, event.payload)
        for call in [call for call in self.calls.values() if call.turn_id == turn.id]:
            if call.state is not CallState.RETURNED:
                self._close_call(turn, call)
        cancelled = TurnCancelled(reason=CancelReason.FORKED, principal=self.session.owner, usage=turn.usage)
        self._end_turn(turn, cancelled, at=self.session.create_time)
        self._append_own(turn, cancelled)

    def _close_call(self, turn: Turn, call: Call) -> None:
        """Closes an open call. The outcome of an irreversible call that was started is UNKNOWN in the fork."""
        lost = call.started and call.tool_class is ToolClass.IRREVERSIBLE
        returned = ToolReturned(
            tool_call_id=call.id,
            tool=call.tool,
            outcome=ToolOutcome.UNKNOWN if lost else ToolOutcome.CANCELLED,
            result_json=LEFT_BEHIND if call.started else NEVER_RAN,
            started=call.started,
        )
        self._return_call(returned)
        self._append_own(turn, returned)

    def _put(self, turn: Turn) -> None:
        """Replaces the turn of this id."""
        self.turns[turn.id] = turn

    def _append(self, event: Event, payload: Payload) -> None:
        """Appends a copied event, with the source's time and attempt."""
        turn = self.turns[event.turn_id]
        attempt = max(turn.attempt, event.attempt)
        self._put(replace(turn, attempt=attempt, update_time=event.create_time))
        self.events.append(NewEvent(payload=payload, at=event.create_time, turn_id=turn.id, attempt=attempt))

    def _append_own(self, turn: Turn, payload: Payload) -> None:
        """Appends an event that the source does not have, with the fork's time."""
        self.events.append(
            NewEvent(payload=payload, at=self.session.create_time, turn_id=turn.id, attempt=turn.attempt)
        )
