"""A model's context, built from the events of a session's log."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from turnkeeper.domain.event import (
    Event,
    MessageCompleted,
    MessageReceived,
    SessionRestored,
    TurnCompleted,
    TurnFailed,
    TurnQueued,
    TurnRetried,
    TurnStarted,
)
from turnkeeper.domain.message import FinishReason, Message, Role, text_of
from turnkeeper.domain.refused import Refused, refused_of, sent_form
from turnkeeper.domain.tool import model_text
from turnkeeper.domain.tool_events import ToolReturned

TAKEN_BACK = "The session was taken back to before this call's result was known; the call may have run."
"""The result that a model receives for a call whose own result was removed by a restoration (promise I16)."""
BEGINNINGS = frozenset(
    {"message_received", "turn_queued", "turn_started", "turn_completed", "turn_retried", "session_restored"}
)
"""The kinds of events that `unfinished_turn` needs."""
ENTRY_BYTES = 1024
"""An estimate of the memory that a message takes beside its text and an adapter's form of it: objects and ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One message of the conversation, and the event that recorded it."""

    message: Message
    turn_id: str
    sequence: int
    """The number of that event."""
    create_time: datetime
    message_id: str
    finish_reason: FinishReason | None = None
    """Set for a message of the model."""
    untrusted: bool = False
    """True for what an untrusted tool returned."""


@dataclass(slots=True)
class History:
    """The conversation in the order in which its turns began.

    A queued turn's message stands where the turn began, not where it arrived in the middle of another turn's answer.
    A message whose turn never began is left out. Only whole messages and those closed by their owner are kept. After
    a restoration, the conversation is the one at the restored position. What a model's server has refused is not sent
    again with every later message: see `sent_form`.
    """

    size: int = 0
    """About how many bytes of memory it takes."""
    _turns: dict[str, list[HistoryEntry]] = field(default_factory=dict)
    _begun: dict[str, None] = field(default_factory=dict)
    """Ids of the turns that began, in order; only the keys count."""
    _grown: dict[str, None] = field(default_factory=dict)
    """Ids of the turns that got messages since the last restoration: only these can have calls without a result."""
    _messages: list[Message] | None = field(default_factory=list)
    """The messages of `messages`, cached while the conversation only grows at its end; None otherwise."""
    _refused: dict[str, Refused] = field(default_factory=dict)
    """The turns that failed because a model's server refused what they sent."""

    @classmethod
    def of(cls, log: Sequence[Event]) -> "History":
        """Returns the history of a log's events from the first one on, restorations included."""
        history = cls()
        for event in counted(log):
            history.add(event)
        return history

    def add(self, event: Event) -> None:
        """Adds the next event of the log; ignores one that is not part of a model's context.

        A restoration needs the whole log: only `of` drops the events that it removed. This method closes the calls
        whose results it removed.
        """
        match event.payload:
            case SessionRestored():
                self._close_rounds(event)
            case MessageReceived(content=content, message_id=message_id):
                self._turns[event.turn_id] = []
                self._begun[event.turn_id] = None
                self._append(event, Message(role=Role.USER, text=text_of(content)), message_id)
            case TurnQueued():
                del self._begun[event.turn_id]
                self._messages = None
            case TurnStarted():
                if event.turn_id not in self._begun:
                    self._begun[event.turn_id] = None
                    self._messages = None
            case MessageCompleted() as completed:
                message = Message(
                    role=Role.ASSISTANT, text=text_of(completed.content), tool_requests=completed.tool_requests
                )
                self._append(event, message, completed.message_id, completed.finish_reason)
            case ToolReturned() as result:
                message = Message(role=Role.TOOL, text=model_text(result.result_json), tool_call_id=result.tool_call_id)
                self._append(event, message, result.tool_call_id, untrusted=not result.trusted)
            case _:
                self._follow_refusal(event)

    def entries(self) -> tuple[HistoryEntry, ...]:
        """Returns the conversation, message by message."""
        return tuple(entry for turn_id in self._begun for entry in self._turns[turn_id])

    def messages(self, instructions: str) -> tuple[Message, ...]:
        """Returns the model's context: the instructions, then every message that is not empty."""
        system = (Message(role=Role.SYSTEM, text=instructions),) if instructions else ()
        if self._messages is None:
            sent = (sent_form(entry.message, self._refused.get(entry.turn_id)) for entry in self.entries())
            self._messages = [message for message in sent if not _is_empty(message)]
        return (*system, *self._messages)

    @property
    def untrusted(self) -> bool:
        """Returns True if the context holds what an untrusted tool returned, in whichever turn."""
        return any(entry.untrusted for turn_id in self._begun for entry in self._turns[turn_id])

    def _append(
        self,
        event: Event,
        message: Message,
        message_id: str,
        finish: FinishReason | None = None,
        *,
        turn_id: str = "",
        untrusted: bool = False,
    ) -> None:
        """Adds a message to its turn, and to the cached messages if it is the newest."""
        turn_id = turn_id or event.turn_id
        entry = HistoryEntry(
            message=message,
            turn_id=turn_id,
            sequence=event.sequence,
            create_time=event.create_time,
            message_id=message_id,
            finish_reason=finish,
            untrusted=untrusted,
        )
        self._turns[turn_id].append(entry)
        self._grown[turn_id] = None
        self.size += _size(message)
        if next(reversed(self._begun), "") != turn_id:
            self._messages = None
        elif self._messages is not None and not _is_empty(message):
            self._messages.append(message)

    def _follow_refusal(self, event: Event) -> None:
        """Follows whether a model's server refused what a turn sent: until RetryTurn sends it again."""
        refused = refused_of(event.payload.error) if isinstance(event.payload, TurnFailed) else None
        if refused is not None:
            self._refused[event.turn_id] = refused
            self._messages = None
        elif isinstance(event.payload, TurnRetried) and event.turn_id in self._refused:
            del self._refused[event.turn_id]
            self._messages = None

    def _close_rounds(self, restored: Event) -> None:
        """Adds a TAKEN_BACK result for each call whose result the restoration removed."""
        grown, self._grown = self._grown, {}
        for turn_id in grown:
            for call_id in _unanswered(self._turns[turn_id]) if turn_id in self._begun else ():
                message = Message(role=Role.TOOL, text=TAKEN_BACK, tool_call_id=call_id)
                self._append(restored, message, call_id, turn_id=turn_id)
        self._grown = {}


def counted(events: Sequence[Event]) -> Sequence[Event]:
    """Returns the events that no restoration removed, in order, and the restorations themselves.

    `events` is a log from its first event on.
    """
    remaining: list[Event] = []
    end = events[-1].sequence if events else 0
    for event in reversed(events):
        if event.sequence > end:
            continue
        remaining.append(event)
        if isinstance(event.payload, SessionRestored):
            end = event.payload.to_sequence
    remaining.reverse()
    return remaining


def unfinished_turn(events: Sequence[Event]) -> str:
    """Returns the id of the turn that began last, or "" if it completed; it may also have failed or been cancelled.

    `events` are those of the kinds in BEGINNINGS, from the log's first event on.
    """
    begun: dict[str, None] = {}
    completed: set[str] = set()
    for event in counted(events):
        match event.payload:
            case MessageReceived():
                begun[event.turn_id] = None
            case TurnQueued():
                del begun[event.turn_id]
            case TurnStarted():
                begun.setdefault(event.turn_id)
            case TurnRetried():
                completed.discard(event.turn_id)
            case TurnCompleted():
                completed.add(event.turn_id)
            case _:
                pass
    last = next(reversed(begun), "")
    return last if last not in completed else ""


def _unanswered(entries: Sequence[HistoryEntry]) -> list[str]:
    """Returns the calls of a turn without a result; only its last message with tool requests can have some."""
    answered: set[str] = set()
    for entry in reversed(entries):
        if entry.message.tool_requests:
            return [call.tool_call_id for call in entry.message.tool_requests if call.tool_call_id not in answered]
        answered.add(entry.message.tool_call_id)
    return []


def _is_empty(message: Message) -> bool:
    """Returns True if the message has nothing for a model; an empty tool result is not empty: it answers a call."""
    return not (message.text or message.tool_requests or message.role is Role.TOOL)


def _size(message: Message) -> int:
    """Returns about how many bytes a message takes: its texts twice, because an adapter's form holds them again."""
    calls = message.tool_requests
    texts = (message.text, *(call.arguments_json for call in calls), *(call.provider_json for call in calls))
    return ENTRY_BYTES + 2 * sum(map(sys.getsizeof, texts))
