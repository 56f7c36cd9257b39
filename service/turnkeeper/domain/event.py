"""Events: what a session's log holds. Each payload has the fields of its proto message, by the same names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.approval import ApprovalDecision, ApprovalKind
from turnkeeper.domain.message import FinishReason, Part, ToolRequest, Usage
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolOutcome
from turnkeeper.domain.turn import CancelReason, StopReason


class AttemptOutcome(StrEnum):
    RETRYING = "RETRYING"
    EXHAUSTED = "EXHAUSTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived:
    message_id: str
    content: tuple[Part, ...]
    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnQueued:
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted:
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCompleted:
    message_id: str
    content: tuple[Part, ...]
    tool_requests: tuple[ToolRequest, ...]
    finish_reason: FinishReason
    usage: Usage
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalled:
    tool_call_id: str
    tool: str
    arguments_json: str
    arguments_hash: str
    action: PolicyAction
    tool_class: ToolClass
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStarted:
    tool_call_id: str
    tool: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReturned:
    tool_call_id: str
    tool: str
    outcome: ToolOutcome
    result_json: str
    started: bool
    duration: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientToolRequested:
    tool_call_id: str
    tool: str
    arguments_json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequested:
    approval_id: str
    kind: ApprovalKind
    tool_call_id: str
    tool: str
    arguments_json: str
    arguments_hash: str
    round: int
    expire_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDecided:
    approval_id: str
    tool_call_id: str
    decision: ApprovalDecision
    decided_by: str
    reason: str
    arguments_hash: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalExpired:
    approval_id: str
    tool_call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalWithdrawn:
    approval_id: str
    tool_call_id: str
    replaced_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed:
    error: ErrorDetail
    outcome: AttemptOutcome
    retry_delay: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSuperseded:
    superseded_attempt: int
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCompleted:
    stop_reason: StopReason
    usage: Usage
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFailed:
    error: ErrorDetail
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCancelled:
    reason: CancelReason
    principal: str
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRetried:
    principal: str
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCreated:
    agent: str
    agent_version: str
    owner: str
    title: str
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata_json: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionActivated:
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded:
    principal: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRestored:
    to_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionForked:
    source_session_id: str
    source_sequence: int
    copied_through: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSuspended:
    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResumed:
    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdated:
    fields: tuple[str, ...]


Payload = (
    MessageReceived
    | TurnQueued
    | TurnStarted
    | MessageCompleted
    | ToolCalled
    | ToolStarted
    | ToolReturned
    | ClientToolRequested
    | ApprovalRequested
    | ApprovalDecided
    | ApprovalExpired
    | ApprovalWithdrawn
    | AttemptFailed
    | AttemptSuperseded
    | TurnCompleted
    | TurnFailed
    | TurnCancelled
    | TurnRetried
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
class ForeignPayload:
    """What another version says, in a field of `Event` that this one does not know; whoever does not, ignores it."""

    kind: str
    text: str


def kind_of(payload: type[Payload]) -> str:
    """The payload's name on the wire: `MessageReceived` → `message_received`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", payload.__name__).lower()


KINDS: Mapping[str, type[Payload]] = {kind_of(payload): payload for payload in Payload.__args__}
NAMES: Mapping[type[Payload], str] = {payload: kind for kind, payload in KINDS.items()}


def name_of(payload: Payload | ForeignPayload) -> str:
    """The payload's kind, as it is stored beside the event."""
    return payload.kind if isinstance(payload, ForeignPayload) else NAMES[type(payload)]


HISTORY = frozenset(
    {
        "message_received",
        "turn_queued",
        "turn_started",
        "message_completed",
        "tool_called",
        "tool_returned",
        "session_restored",
    }
)
"""The kinds from which a model's context is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """A durable event before it has its number. `at` is for people."""

    payload: Payload | ForeignPayload
    at: datetime
    turn_id: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A durable event of a session's log, read again."""

    sequence: int
    turn_id: str
    attempt: int
    create_time: datetime
    payload: Payload | ForeignPayload
