"""The conversation of one session, up to a place, as the log of another: turn after turn, each one ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from turnkeeper.domain.event import (
    ClientToolRequested,
    Event,
    ForeignPayload,
    MessageCompleted,
    MessageReceived,
    NewEvent,
    Payload,
    SessionRestored,
    ToolCalled,
    ToolReturned,
    ToolStarted,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnQueued,
    TurnRetried,
    TurnStarted,
)
from turnkeeper.domain.history import counted
from turnkeeper.domain.message import FinishReason, ToolRequest, Usage
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import Call, CallState, ToolClass, ToolOutcome
from turnkeeper.domain.turn import CancelReason, Turn, TurnOptions, TurnState

LEFT_BEHIND = '"The session was forked before this call\'s result was known; the call may have run."'
NEVER_RAN = '"The session was forked before this call ran; it did not run here."'
"""What a model is told of calls that were open at the place (promise I16)."""
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
"""The kinds that a copy is made of, so no trimming takes them. Approvals stay with the session that asked for them."""


@dataclass(slots=True)
class Copy:
    """Events, turns and calls of a fork. `session` is the fork; its events are numbered after `opening` others.

    A turn's message stands where the turn began, so that there is no queue; one that had not begun is left out. What
    was open where the conversation was cut is closed: its calls by results that say so, the turn as CANCELLED, FORKED.
    Usage is counted from what is copied.
    """

    session: Session
    opening: int
    options: Mapping[str, TurnOptions]
    called: Mapping[str, Event]
    events: list[NewEvent] = field(default_factory=list)
    turns: dict[str, Turn] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    _held: dict[str, Event] = field(default_factory=dict)
    _arrived: str = ""
    _open: str = ""
    _asked: tuple[ToolRequest, ...] = ()

    def take(self, events: Sequence[Event]) -> None:
        """The source's events of the kinds COPIED, from its first to the place."""
        for event in counted(events):
            self._add(event)
        self._close()
        self.session = replace(self.session, usage=sum((turn.usage for turn in self.turns.values()), Usage()))

    def _add(self, event: Event) -> None:
        payload = event.payload
        if isinstance(payload, MessageReceived):
            self._settle_arrived()
            self._held[event.turn_id] = event
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
            self._say(event, payload)
        elif event.turn_id in self.turns and not isinstance(payload, ForeignPayload):
            self._go_on(event, payload)

    def _go_on(self, event: Event, payload: Payload) -> None:
        """An event of a turn that has begun."""
        turn = self.turns[event.turn_id]
        match payload:
            case TurnRetried():
                self._open = turn.id
                self._put(replace(turn, state=TurnState.PENDING, end_time=None, error=None, answer=(), iterations=0))
            case MessageCompleted():
                self._spoken(turn, payload)
            case ToolStarted(tool_call_id=call_id, key=key):
                used = replace(turn.usage, tool_calls=turn.usage.tool_calls + 1)
                self._put(replace(turn, usage=used))
                self.calls[call_id] = replace(self.calls[call_id], started=True, key=key)
            case ClientToolRequested(tool_call_id=call_id):
                self.calls[call_id] = replace(self.calls[call_id], started=True, state=CallState.STARTED)
            case ToolCalled():
                self._enter(event, payload)
            case ToolReturned():
                self._returned(payload)
            case TurnCompleted() | TurnFailed() | TurnCancelled():
                payload = replace(payload, usage=turn.usage)
                self._end(turn, payload, at=event.create_time)
            case _:
                pass
        self._say(event, payload)

    def _settle_arrived(self) -> None:
        """A message that was not queued begins its turn as soon as no other is open."""
        if self._arrived and not self._open:
            self._begin(self._arrived)

    def _begin(self, turn_id: str) -> None:
        event = self._held.pop(turn_id, None)
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
        )
        self._say(event, event.payload)

    def _spoken(self, turn: Turn, said: MessageCompleted) -> None:
        self._asked = said.tool_requests
        if said.finish_reason is FinishReason.INTERRUPTED:
            return
        self._put(
            replace(
                turn,
                iterations=turn.iterations + 1,
                usage=turn.usage + said.usage,
                finish_reason=said.finish_reason,
                answer=() if said.tool_requests else said.content,
                next_message_id=said.message_id,
            )
        )

    def _enter(self, event: Event, called: ToolCalled) -> None:
        asked = [request.tool_call_id for request in self._asked]
        self.calls[called.tool_call_id] = Call(
            id=called.tool_call_id,
            tenant=self.session.tenant,
            session_id=self.session.id,
            turn_id=event.turn_id,
            message_id=called.message_id,
            position=asked.index(called.tool_call_id) if called.tool_call_id in asked else len(asked),
            tool=called.tool,
            arguments_json=called.arguments_json,
            arguments_hash=called.arguments_hash,
            tool_class=called.tool_class,
            action=called.action,
            state=CallState.READY,
            key="",
        )

    def _returned(self, returned: ToolReturned) -> None:
        call = self.calls[returned.tool_call_id]
        self.calls[call.id] = replace(call, state=CallState.RETURNED, outcome=returned.outcome)
        cut = call.state is CallState.STARTED and returned.outcome is ToolOutcome.CANCELLED
        if returned.outcome is ToolOutcome.UNKNOWN or (cut and not call.tool_class.may_start_again):
            self.session = self.session.with_unknown(call.tool, call.id)

    def _end(self, turn: Turn, payload: TurnCompleted | TurnFailed | TurnCancelled, *, at: datetime) -> None:
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
        """The conversation was cut here: nothing stays open, and what waits is left out."""
        self._close_turn()
        self._settle_arrived()
        self._close_turn()
        self._held, self._arrived = {}, ""

    def _close_turn(self) -> None:
        if not self._open:
            return
        turn = self.turns[self._open]
        for request in self._asked:
            decided = self.called.get(request.tool_call_id)
            if request.tool_call_id not in self.calls and decided and isinstance(decided.payload, ToolCalled):
                self._enter(decided, decided.payload)  # stored in one step with its message
                self._say(decided, decided.payload)
        for call in [each for each in self.calls.values() if each.turn_id == turn.id]:
            if call.state is not CallState.RETURNED:
                self._close_call(turn, call)
        cancelled = TurnCancelled(reason=CancelReason.FORKED, principal=self.session.owner, usage=turn.usage)
        self._end(turn, cancelled, at=self.session.create_time)
        self._say_of(turn, cancelled)

    def _close_call(self, turn: Turn, call: Call) -> None:
        """Of an irreversible call that was started nobody here knows the outcome."""
        lost = call.started and call.tool_class is ToolClass.IRREVERSIBLE
        returned = ToolReturned(
            tool_call_id=call.id,
            tool=call.tool,
            outcome=ToolOutcome.UNKNOWN if lost else ToolOutcome.CANCELLED,
            result_json=LEFT_BEHIND if call.started else NEVER_RAN,
            started=call.started,
        )
        self._returned(returned)
        self._say_of(turn, returned)

    def _put(self, turn: Turn) -> None:
        self.turns[turn.id] = turn

    def _say(self, event: Event, payload: Payload) -> None:
        turn = self.turns[event.turn_id]
        attempt = max(turn.attempt, event.attempt)
        self._put(replace(turn, attempt=attempt, update_time=event.create_time))
        self.events.append(NewEvent(payload=payload, at=event.create_time, turn_id=turn.id, attempt=attempt))

    def _say_of(self, turn: Turn, payload: Payload) -> None:
        self.events.append(
            NewEvent(payload=payload, at=self.session.create_time, turn_id=turn.id, attempt=turn.attempt)
        )
