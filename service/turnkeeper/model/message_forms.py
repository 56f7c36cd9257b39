"""Other forms of a conversation, for a server that refuses it as it is.

A server may not know the ids of calls that another server or an earlier version made. It may refuse fields that it
sent itself, miss a signature that was never kept, or want each role in its turn.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import pairwise
from typing import Final

from turnkeeper.domain.message import DoubtfulMessage, Message, Role
from turnkeeper.domain.refused import LEFT_OUT
from turnkeeper.model.beside import unpacked

_ID_LENGTH: Final = 9
"""Letters and digits of an id that every server takes: Mistral wants so many, and all others take them."""
_FORM: Final = "bare"


class MessageForm(StrEnum):
    """How a conversation is sent.

    WHOLE: with all that came with its calls. BARE: with ids that every server takes, and nothing beside the calls.
    AS_TEXT: the calls of earlier turns as text. The last two leave out what may have been refused before.
    """

    WHOLE = "WHOLE"
    BARE = "BARE"
    AS_TEXT = "AS_TEXT"


def forms_of(messages: Sequence[Message]) -> list[MessageForm]:
    """Returns the forms in which the conversation differs, in the order in which they are tried."""
    start = _last_turn(messages)
    has_calls = any(message.tool_requests for message in messages)
    has_earlier_calls = any(message.tool_requests for message in messages[:start])
    is_odd = any(isinstance(message, DoubtfulMessage) for message in messages) or _repeats_a_role(messages)
    forms = [MessageForm.WHOLE, *([MessageForm.BARE] if has_calls or is_odd else [])]
    return [*forms, MessageForm.AS_TEXT] if has_earlier_calls else forms


def has_kept(messages: Sequence[Message], origin: str) -> bool:
    """Returns True if something that came from this model goes back with a call."""
    return any(unpacked(call.provider_json, origin=origin) for message in messages for call in message.tool_requests)


def in_form(messages: Sequence[Message], form: MessageForm) -> Sequence[Message]:
    """Returns the conversation in this form."""
    match form:
        case MessageForm.WHOLE:
            return messages
        case MessageForm.BARE:
            return _joined([_bare(message) for message in messages])
        case MessageForm.AS_TEXT:
            start = _last_turn(messages)
            return _joined([*_as_text(messages[:start]), *(_without_doubt(message) for message in messages[start:])])


def _last_turn(messages: Sequence[Message]) -> int:
    """Returns the place of the last message of a user."""
    places = (place for place in range(len(messages) - 1, -1, -1) if messages[place].role is Role.USER)
    return next(places, 0)


def _repeats_a_role(messages: Sequence[Message]) -> bool:
    """Returns True if two messages of users, or two of the model, follow each other."""
    return any(
        message.role is following.role and message.role is not Role.TOOL for message, following in pairwise(messages)
    )


def _joined(messages: Sequence[Message]) -> Sequence[Message]:
    """Returns the messages with neighbours of one role as one message; calls and their results stay apart."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last and last.role is message.role and message.role is not Role.TOOL and not last.tool_requests:
            text = "\n\n".join(text for text in (last.text, message.text) if text)
            joined[-1] = Message(role=last.role, text=text, tool_requests=message.tool_requests)
        else:
            joined.append(message)
    return joined


def _without_doubt(message: Message) -> Message:
    """Returns the message without the text that may have been refused."""
    if not isinstance(message, DoubtfulMessage):
        return message
    return Message(role=message.role, text=LEFT_OUT, tool_call_id=message.tool_call_id)


def _bare(message: Message) -> Message:
    """Returns the message with plain ids and nothing beside its calls; cached with it."""
    if not (message.tool_requests or message.tool_call_id or isinstance(message, DoubtfulMessage)):
        return message
    cached = message.forms.get(_FORM)
    if isinstance(cached, Message):
        return cached
    calls = tuple(
        replace(call, tool_call_id=_plain_id(call.tool_call_id), provider_json="") for call in message.tool_requests
    )
    call_id = _plain_id(message.tool_call_id) if message.tool_call_id else ""
    bare = replace(_without_doubt(message), tool_requests=calls, tool_call_id=call_id)
    message.forms[_FORM] = bare
    return bare


def _plain_id(call_id: str) -> str:
    """Returns an id that every server takes, always the same for the same call."""
    return base64.b32encode(hashlib.sha256(call_id.encode(errors="replace")).digest()).decode()[:_ID_LENGTH]


def _as_text(messages: Sequence[Message]) -> list[Message]:
    """Returns the messages of ended turns with their calls and results as text of the model."""
    results = {message.tool_call_id: _without_doubt(message).text for message in messages if message.role is Role.TOOL}
    texts: list[Message] = []
    for message in messages:
        if message.role is Role.TOOL:
            continue
        text = _without_doubt(message).text
        lines = [text] if text else []
        for call in message.tool_requests:
            result = results.get(call.tool_call_id, "")
            lines.append(f"[The tool {call.tool} was called with {call.arguments_json} and returned: {result}]")
        texts.append(Message(role=message.role, text="\n".join(lines)))
    return texts
