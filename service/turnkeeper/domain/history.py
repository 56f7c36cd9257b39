"""A model's context, folded from a session's log."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

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
ENTRY_BYTES = 1024
"""What a message takes beside its text and an adapter's form of it: the objects, their ids and places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One message, and where the log holds it."""

    message: Message
    turn_id: str
    sequence: int
    create_time: datetime
    message_id: str
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class History:
    """The conversation in the order in which its turns began.

    A queued turn's message counts from the turn's start, not from its arrival in the middle of another turn's answer;
    one whose turn never began is not part of it. Only whole messages are kept, and those that their owner closed.
    After a restoration it is what it was at the place that this names.
    `size`: about how many bytes of memory it takes.
    """

    size: int = 0
    _turns: dict[str, list[HistoryEntry]] = field(default_factory=dict)
    _begun: list[str] = field(default_factory=list)
    _said: list[Message] | None = field(default_factory=list)
    """What `messages` gives, kept while it only grows at its end."""

    @classmethod
    def of(cls, log: Sequence[Event]) -> "History":
        """A log's beginning, with its restorations."""
        history = cls()
        for event in counted(log):
            history.add(event)
        return history

    def add(self, event: Event) -> None:
        """The next event of the log; those that say nothing to a model are passed over.

        A restoration needs the whole log: `of` takes it. Here it only closes what it cut.
        """
        match event.payload:
            case SessionRestored():
                self._close_rounds(event)
            case MessageReceived(content=content, message_id=message_id):
                self._turns[event.turn_id] = []
                self._begun.append(event.turn_id)
                self._append(event, Message(role=Role.USER, text=text_of(content)), message_id)
            case TurnQueued():
                self._begun.remove(event.turn_id)
                self._said = None
            case TurnStarted():
                if event.turn_id not in self._begun[-1:] and event.turn_id not in self._begun:
                    self._begun.append(event.turn_id)
                    self._said = None
            case MessageCompleted() as said:
                message = Message(role=Role.ASSISTANT, text=text_of(said.content), tool_requests=said.tool_requests)
                self._append(event, message, said.message_id, said.finish_reason)
            case ToolReturned() as result:
                message = Message(role=Role.TOOL, text=model_text(result.result_json), tool_call_id=result.tool_call_id)
                self._append(event, message, result.tool_call_id)
            case _:
                pass

    def entries(self) -> tuple[HistoryEntry, ...]:
        return tuple(entry for turn_id in self._begun for entry in self._turns[turn_id])

    def messages(self, instructions: str) -> tuple[Message, ...]:
        """What the model is sent: the instructions, then every message that says something."""
        system = (Message(role=Role.SYSTEM, text=instructions),) if instructions else ()
        if self._said is None:
            self._said = [entry.message for entry in self.entries() if _says_something(entry.message)]
        return (*system, *self._said)

    def _append(
        self, event: Event, message: Message, message_id: str, finish: FinishReason | None = None, *, turn_id: str = ""
    ) -> None:
        turn_id = turn_id or event.turn_id
        entry = HistoryEntry(
            message=message,
            turn_id=turn_id,
            sequence=event.sequence,
            create_time=event.create_time,
            message_id=message_id,
            finish_reason=finish,
        )
        self._turns[turn_id].append(entry)
        self.size += _size(message)
        if self._begun[-1:] != [turn_id]:
            self._said = None
        elif self._said is not None and _says_something(message):
            self._said.append(message)

    def _close_rounds(self, restored: Event) -> None:
        """Calls whose results came behind the place get one in their stead."""
        for turn_id in self._begun:
            for call_id in _unanswered(self._turns[turn_id]):
                message = Message(role=Role.TOOL, text=TAKEN_BACK, tool_call_id=call_id)
                self._append(restored, message, call_id, turn_id=turn_id)


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


def _unanswered(entries: Sequence[HistoryEntry]) -> list[str]:
    """The calls without a result; only the last message that asks for any can have some."""
    answered: set[str] = set()
    for entry in reversed(entries):
        if entry.message.tool_requests:
            return [each.tool_call_id for each in entry.message.tool_requests if each.tool_call_id not in answered]
        answered.add(entry.message.tool_call_id)
    return []


def _says_something(message: Message) -> bool:
    return bool(message.text or message.tool_requests or message.role is Role.TOOL)


def _size(message: Message) -> int:
    texts = (message.text, *(each.arguments_json for each in message.tool_requests))
    return ENTRY_BYTES + 2 * sum(map(sys.getsizeof, texts))
