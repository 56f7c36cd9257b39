"""Checkpoints: places of a log that have a name. They are read out of its events; nothing else is stored."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from turnkeeper.domain.event import Event, MessageCompleted
from turnkeeper.domain.message import FinishReason


class CheckpointKind(StrEnum):
    EXECUTION_START = "EXECUTION_START"
    TOOL_CALL = "TOOL_CALL"
    APPROVAL_PENDING = "APPROVAL_PENDING"
    CONTENT_PARTIAL = "CONTENT_PARTIAL"
    EXECUTION_COMPLETE = "EXECUTION_COMPLETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`sequence`: the place is after this event; `create_time` is that of the event it was read from."""

    checkpoint_id: str
    kind: CheckpointKind
    sequence: int
    turn_id: str
    create_time: datetime


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
    """The checkpoint that this event of a kind of MARKS stands for; None for a message that was not cut.

    What was said of a cut message does not count: its place is where the model was called, before this event.
    """
    marks = _MARKS[kind]
    payload = event.payload
    if isinstance(payload, MessageCompleted) and payload.finish_reason is not FinishReason.INTERRUPTED:
        return None
    return Checkpoint(
        checkpoint_id=f"{marks.lower()}-{event.sequence}",
        kind=marks,
        sequence=event.sequence - (marks is CheckpointKind.CONTENT_PARTIAL),
        turn_id=event.turn_id,
        create_time=event.create_time,
    )


def event_named(checkpoint_id: str) -> int:
    """The number of the event that a checkpoint's id speaks of, 0 when it is no such id."""
    found = _ID.fullmatch(checkpoint_id)
    return int(found[2]) if found else 0
