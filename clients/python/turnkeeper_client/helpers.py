"""Short ways to what is inside the messages of the API."""

import re
from typing import Protocol

from google.protobuf.descriptor import EnumDescriptor

from turnkeeper_client.pb.v1.chat_pb2 import Turn
from turnkeeper_client.pb.v1.event_pb2 import Event, MessageCompleted
from turnkeeper_client.pb.v1.message_pb2 import ROLE_ASSISTANT, Message


class Enum(Protocol):
    """An enum of the API, for example `turnkeeper_client.TurnState`."""

    @property
    def DESCRIPTOR(self) -> EnumDescriptor: ...  # noqa: N802 - protobuf's name


def text_of(source: Turn | Message | MessageCompleted) -> str:
    """Returns the text of a message, or of a turn's answer; "" if it has none, as the answer of a turn that waits."""
    return "".join(part.text for part in (source.answer if isinstance(source, Turn) else source.content))


def name_of(enum: Enum, value: int) -> str:
    """Returns the name of an enum's value without its prefix: `name_of(TurnState, turn.state)` is "COMPLETED".

    Returns the number as text for a value of a later release.
    """
    known = enum.DESCRIPTOR.values_by_number.get(value)
    if known is None:
        return str(int(value))
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.DESCRIPTOR.name).upper()
    name: str = known.name
    return name.removeprefix(f"{prefix}_")


def message_of(event: Event) -> Message:
    """Returns the message that a `message_completed` holds, as `session.messages()` yields it."""
    whole = event.message_completed
    return Message(
        role=ROLE_ASSISTANT,
        content=whole.content,
        tool_requests=whole.tool_requests,
        message_id=whole.message_id,
        turn_id=event.turn_id,
        sequence=event.sequence,
        finish_reason=whole.finish_reason,
        create_time=event.create_time,
    )
