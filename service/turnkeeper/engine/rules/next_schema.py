"""What a coming version may add to a turn's steps, added by this version: for tests of two versions at once (I17)."""

from collections.abc import Callable

from turnkeeper.domain.event import MessageCompleted, UnknownPayload
from turnkeeper.engine.rules.unit_of_work import UnitOfWork

KIND = "message_annotated"
"""The kind of an event that this version does not know, and may ignore."""
_FIELD_99 = b"\x9a\x06"
"""The wire tag of a string in field 99 of `Event`: a number that no version ever names."""


def additions(schema: int) -> Callable[[UnitOfWork], None]:
    """Returns what the version of this schema adds to an owner's unit of work.

    It appends an event of its own beside each whole message of the model. From a message that requests tools on, only
    replicas of that schema may own the turn.
    """

    def add(uow: UnitOfWork) -> None:
        messages = [event.payload for event in uow.events if isinstance(event.payload, MessageCompleted)]
        if not messages:
            return
        text = f"by schema {schema}".encode()
        raw = _FIELD_99 + bytes((len(text),)) + text  # a length below 128 is one byte
        uow.append(UnknownPayload(kind=KIND, raw=raw), turn=uow.turn)
        if any(message.tool_requests for message in messages):
            uow.change_head(needs=schema)

    return add
