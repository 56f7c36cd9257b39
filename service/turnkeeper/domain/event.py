"""Events: the entries of a session's log.

Each payload has the fields of its message in event.proto, by the same names: the codec copies them by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.approval_events import (
    ApprovalDecided,
    ApprovalExpired,
    ApprovalExpiring,
    ApprovalExtended,
    ApprovalRequested,
    ApprovalVoted,
    ApprovalWithdrawn,
)
from turnkeeper.domain.message import FinishReason, Part, ToolRequest, Usage
from turnkeeper.domain.remembered import RememberedDecision
from turnkeeper.domain.tool_events import ClientToolRequested, ToolCalled, ToolReconciled, ToolReturned, ToolStarted
from turnkeeper.domain.turn import CancelReason, StopReason


class AttemptOutcome(StrEnum):
    """What follows a failed attempt: the model is called again (RETRYING), or the turn fails (EXHAUSTED)."""

    RETRYING = "RETRYING"
    EXHAUSTED = "EXHAUSTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived:
    """A user's message was accepted."""

    message_id: str
    content: tuple[Part, ...]
    principal: str
    """Who sent it."""
    through: str = ""
    """The delegate that sent it on behalf of the principal; empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnQueued:
    """The turn waits until the turns before it have ended."""

    position: int
    """Turns before it, the running one included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted:
    """The turn's first attempt began."""

    message_id: str
    """The id that the model's first message will have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCompleted:
    """A whole message of the model; it replaces the text of its deltas."""

    message_id: str
    content: tuple[Part, ...]
    tool_requests: tuple[ToolRequest, ...]
    finish_reason: FinishReason
    usage: Usage
    """Of this model call alone."""
    model: str
    """The model's name, as its server reported it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed:
    """A model call failed; its deltas do not count."""

    error: ErrorDetail
    outcome: AttemptOutcome
    retry_delay: timedelta | None = None
    """With RETRYING: the time until the next try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSuperseded:
    """Another owner took over the turn; deltas of the earlier attempt do not count."""

    superseded_attempt: int
    """The attempt that no longer counts."""
    message_id: str
    """The id that the model's next message will have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCompleted:
    """The turn ended with an answer."""

    stop_reason: StopReason
    usage: Usage
    """Of the whole turn."""
    message_id: str
    """The message that is the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFailed:
    """The turn ended without an answer."""

    error: ErrorDetail
    usage: Usage
    """Of the whole turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCancelled:
    """The turn was cancelled."""

    reason: CancelReason
    principal: str
    """Who requested it."""
    usage: Usage
    """Of the whole turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRetried:
    """RetryTurn started the turn again."""

    principal: str
    message_id: str
    """The id that the model's next message will have."""
    through: str = ""
    """The delegate that asked for it on behalf of the principal; empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCreated:
    """The session's first event."""

    agent: str
    agent_version: str
    owner: str
    title: str
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata_json: str = ""
    created_through: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionActivated:
    """The first message arrived."""

    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded:
    """EndSession."""

    principal: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRestored:
    """RestoreCheckpoint: events between `to_sequence` and this one no longer count."""

    to_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionForked:
    """ForkSession made this session."""

    source_session_id: str
    source_sequence: int
    """The position in the source's log up to which it was copied."""
    copied_through: int
    """The number of the last copied event in this log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSuspended:
    """SuspendSession."""

    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResumed:
    """ResumeSession."""

    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdated:
    """UpdateSession, DeleteSession or UndeleteSession."""

    fields: tuple[str, ...]
    """The names of the fields that changed."""


Payload = (
    MessageReceived
    | TurnQueued
    | TurnStarted
    | MessageCompleted
    | ToolCalled
    | ToolStarted
    | ToolReconciled
    | ToolReturned
    | ClientToolRequested
    | ApprovalRequested
    | ApprovalVoted
    | ApprovalDecided
    | ApprovalExpiring
    | ApprovalExtended
    | ApprovalExpired
    | ApprovalWithdrawn
    | AttemptFailed
    | AttemptSuperseded
    | TurnCompleted
    | TurnFailed
    | TurnCancelled
    | TurnRetried
    | RememberedDecision
    | SessionCreated
    | SessionActivated
    | SessionEnded
    | SessionRestored
    | SessionForked
    | SessionSuspended
    | SessionResumed
    | SessionUpdated
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownPayload:
    """A payload of a kind that only a newer version knows.

    A replica never reads one: it stores the event as ignorable, and sends its bytes to watchers as they are.
    """

    kind: str
    """The payload's name in the newer version, as it is stored beside the event."""
    raw: bytes
    """The payload's field of `Event` in wire form, tag included. A reader keeps it as an unknown field."""


def kind_of(payload: type[Payload]) -> str:
    """Returns the payload's field name in event.proto: `message_received` for `MessageReceived`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", payload.__name__).lower()


KINDS: Mapping[str, type[Payload]] = {kind_of(payload): payload for payload in Payload.__args__}
"""Payload classes by their kinds."""
NAMES: Mapping[type[Payload], str] = {payload: kind for kind, payload in KINDS.items()}
"""Kinds by their payload classes."""


def name_of(payload: Payload | UnknownPayload) -> str:
    """Returns the payload's kind, as it is stored beside the event."""
    return payload.kind if isinstance(payload, UnknownPayload) else NAMES[type(payload)]


HISTORY = frozenset(
    {
        "message_received",
        "turn_queued",
        "turn_started",
        "message_completed",
        "tool_called",
        "tool_returned",
        "turn_failed",
        "turn_retried",
        "session_restored",
    }
)
"""The kinds that a model's context is built from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """A durable event that has no number yet."""

    payload: Payload | UnknownPayload
    at: datetime
    """The replica's time, for people: nothing is ordered by it."""
    turn_id: str = ""
    """Empty for an event of the session alone."""
    attempt: int = 0
    """The turn's attempt at that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A durable event as it was read from a session's log."""

    sequence: int
    """Its number in the log: from 1, without a gap."""
    turn_id: str
    """Empty for an event of the session alone."""
    attempt: int
    create_time: datetime
    """The writing replica's time, for people: nothing is ordered by it."""
    payload: Payload | UnknownPayload
