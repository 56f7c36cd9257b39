"""A model's context, folded from a session's log."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from turnkeeper.domain.event import (
    Event,
    MessageCompleted,
    MessageReceived,
    SessionRestored,
    ToolReturned,
    TurnCompleted,
    TurnQueued,
    TurnRetried,
    TurnStarted,
)
from turnkeeper.domain.message import FinishReason, Message, Role, text_of
from turnkeeper.domain.tool import model_text

TAKEN_BACK = "The session was taken back to before this call's result was known; the call may have run."
"""What a model is told of a call whose result a restoration left behind (promise I16)."""
BEGINNINGS = frozenset(
    {"message_received", "turn_queued", "turn_started", "turn_completed", "turn_retried", "session_restored"}
)
"""The kinds from which `unfinished_turn` is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message and the event that holds it."""

    message: Message
    event: Event
    message_id: str
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class History:
    """The conversation in the order in which its turns began.

    A queued turn's message counts from the turn's start, not from its arrival in the middle of another turn's answer;
    one whose turn never began is not part of it. Only whole messages are kept, and those that their owner closed.
    After a restoration it is what it was at the place that this names.
    """

    _log: list[Event] = field(default_factory=list)
    _turns: dict[str, list[Entry]] = field(default_factory=dict)
    _begun: list[str] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """The next event of the log; those that say nothing to a model are passed over."""
        self._log.append(event)
        if not isinstance(event.payload, SessionRestored):
            self._take(event)
            return
        self._turns, self._begun = {}, []
        for each in counted(self._log):
            self._take(each)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(entry for turn_id in self._begun for entry in self._turns[turn_id])

    def messages(self, instructions: str) -> tuple[Message, ...]:
        """What the model is sent: the instructions, then every message that says something."""
        system = (Message(role=Role.SYSTEM, text=instructions),) if instructions else ()
        said = (entry.message for entry in self.entries())
        return system + tuple(m for m in said if m.text or m.tool_requests or m.role is Role.TOOL)

    def _take(self, event: Event) -> None:
        match event.payload:
            case SessionRestored():
                self._close_rounds(event)
            case MessageReceived(content=content, message_id=message_id):
                message = Message(role=Role.USER, text=text_of(content))
                self._turns[event.turn_id] = [Entry(message=message, event=event, message_id=message_id)]
                self._begun.append(event.turn_id)
            case TurnQueued():
                self._begun.remove(event.turn_id)
            case TurnStarted():
                if event.turn_id not in self._begun:
                    self._begun.append(event.turn_id)
            case MessageCompleted() as said:
                message = Message(role=Role.ASSISTANT, text=text_of(said.content), tool_requests=said.tool_requests)
                self._append(event, message, said.message_id, said.finish_reason)
            case ToolReturned() as result:
                message = Message(role=Role.TOOL, text=model_text(result.result_json), tool_call_id=result.tool_call_id)
                self._append(event, message, result.tool_call_id, None)
            case _:
                pass

    def _append(self, event: Event, message: Message, message_id: str, finish: FinishReason | None) -> None:
        entry = Entry(message=message, event=event, message_id=message_id, finish_reason=finish)
        self._turns[event.turn_id].append(entry)

    def _close_rounds(self, restored: Event) -> None:
        """Calls whose results came behind the place get one in their stead."""
        for turn_id in self._begun:
            for call_id in _unanswered(self._turns[turn_id]):
                message = Message(role=Role.TOOL, text=TAKEN_BACK, tool_call_id=call_id)
                self._append(replace(restored, turn_id=turn_id), message, call_id, None)


def counted(events: Sequence[Event]) -> Sequence[Event]:
    """Of a log's beginning: what restorations have left, in order; they themselves stay in as a mark."""
    kept: list[Event] = []
    end = events[-1].sequence if events else 0
    for event in reversed(events):
        if event.sequence > end:
            continue
        kept.append(event)
        if isinstance(event.payload, SessionRestored):
            end = event.payload.to_sequence
    kept.reverse()
    return kept


def unfinished_turn(events: Sequence[Event]) -> str:
    """The turn that began last in a log's beginning, of which the events of BEGINNINGS are given; "" when it completed.

    It may have failed, been cancelled, or be in the middle.
    """
    begun: list[str] = []
    completed: set[str] = set()
    for event in counted(events):
        match event.payload:
            case MessageReceived():
                begun.append(event.turn_id)
            case TurnQueued():
                begun.remove(event.turn_id)
            case TurnStarted() if event.turn_id not in begun:
                begun.append(event.turn_id)
            case TurnRetried():
                completed.discard(event.turn_id)
            case TurnCompleted():
                completed.add(event.turn_id)
            case _:
                pass
    return begun[-1] if begun and begun[-1] not in completed else ""


def _unanswered(entries: Sequence[Entry]) -> list[str]:
    """The calls without a result; only the last message that asks for any can have some."""
    answered: set[str] = set()
    for entry in reversed(entries):
        if entry.message.tool_requests:
            return [each.tool_call_id for each in entry.message.tool_requests if each.tool_call_id not in answered]
        answered.add(entry.message.tool_call_id)
    return []
