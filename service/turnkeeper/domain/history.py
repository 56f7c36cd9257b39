"""A model's context, folded from a session's log."""

from dataclasses import dataclass, field

from turnkeeper.domain.event import Event, MessageCompleted, MessageReceived, ToolReturned, TurnQueued, TurnStarted
from turnkeeper.domain.message import FinishReason, Message, Role, text_of
from turnkeeper.domain.tool import model_text


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
    """

    _turns: dict[str, list[Entry]] = field(default_factory=dict)
    _begun: list[str] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """The next event of the log; those that say nothing to a model are passed over."""
        match event.payload:
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

    def entries(self) -> tuple[Entry, ...]:
        return tuple(entry for turn_id in self._begun for entry in self._turns[turn_id])

    def messages(self, instructions: str) -> tuple[Message, ...]:
        """What the model is sent: the instructions, then every message that says something."""
        system = (Message(role=Role.SYSTEM, text=instructions),) if instructions else ()
        said = (entry.message for entry in self.entries())
        return system + tuple(m for m in said if m.text or m.tool_requests or m.role is Role.TOOL)

    def _append(self, event: Event, message: Message, message_id: str, finish: FinishReason | None) -> None:
        entry = Entry(message=message, event=event, message_id=message_id, finish_reason=finish)
        self._turns[event.turn_id].append(entry)
