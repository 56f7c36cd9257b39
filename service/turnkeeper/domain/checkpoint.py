"""Checkpoints: named positions of a session's log. They are derived from its events; nothing else is stored."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from turnkeeper.domain.event import Event, MessageCompleted
from turnkeeper.domain.message import FinishReason


class CheckpointKind(StrEnum):
    """What happened at a checkpoint."""

    EXECUTION_START = "EXECUTION_START"
    TOOL_CALL = "TOOL_CALL"
    APPROVAL_PENDING = "APPROVAL_PENDING"
    CONTENT_PARTIAL = "CONTENT_PARTIAL"
    EXECUTION_COMPLETE = "EXECUTION_COMPLETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A position of a log to which a session can be restored, or at which it can be forked."""

    checkpoint_id: str
    """The kind in lower case, a hyphen, the number of the event it is derived from: `tool_call-17`."""
    kind: CheckpointKind
    sequence: int
    """The position is after this event."""
    turn_id: str
    create_time: datetime
    """That of the event it is derived from."""


_MARKS = {
    "turn_started": CheckpointKind.EXECUTION_START,
    "turn_retried": CheckpointKind.EXECUTION_START,
    "tool_called": CheckpointKind.TOOL_CALL,
    "approval_requested": CheckpointKind.APPROVAL_PENDING,
    "message_completed": CheckpointKind.CONTENT_PARTIAL,
    "attempt_superseded": CheckpointKind.CONTENT_PARTIAL,
    "attempt_failed": CheckpointKind.CONTENT_PARTIAL,
    "turn_completed": CheckpointKind.EXECUTION_COMPLETE,
    "turn_failed": CheckpointKind.EXECUTION_COMPLETE,
    "turn_cancelled": CheckpointKind.EXECUTION_COMPLETE,
}
MARKS = frozenset(_MARKS)
"""The kinds of events that may be checkpoints."""
_ID = re.compile(r"([a-z_]{1,32})-([1-9][0-9]{0,17})")


def checkpoint_of(event: Event, *, kind: str) -> Checkpoint | None:
    """Returns the checkpoint of an event whose kind is in MARKS; None for a message that ended by itself.

    The text of an interrupted message does not count: its checkpoint is the model call, one event earlier.
    """
    checkpoint_kind = _MARKS[kind]
    payload = event.payload
    if isinstance(payload, MessageCompleted) and payload.finish_reason is not FinishReason.INTERRUPTED:
        return None
    return Checkpoint(
        checkpoint_id=f"{checkpoint_kind.lower()}-{event.sequence}",
        kind=checkpoint_kind,
        sequence=event.sequence - (checkpoint_kind is CheckpointKind.CONTENT_PARTIAL),
        turn_id=event.turn_id,
        create_time=event.create_time,
    )


def event_named(checkpoint_id: str) -> int:
    """Returns the number of the event that a checkpoint's id names, 0 if it is not a checkpoint's id."""
    match = _ID.fullmatch(checkpoint_id)
    return int(match[2]) if match else 0
