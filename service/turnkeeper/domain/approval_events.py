"""The events of approvals; see `domain/event.py`."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from turnkeeper.domain.approval import ApprovalDecision, ApprovalKind
from turnkeeper.domain.approvers import ANYBODY, Approvers
from turnkeeper.domain.remembered import Remember


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequested:
    """A person must decide about a tool call."""

    approval_id: str
    kind: ApprovalKind
    tool_call_id: str
    tool: str
    arguments_json: str
    arguments_hash: str
    round: int
    """From 1; a new round voids earlier decisions."""
    expire_time: datetime
    """By the database's clock."""
    approvers: Approvers = ANYBODY
    """Who may decide."""
    rule: str = ""
    """What the rule that asks is called; see `Ruling`."""
    rule_text: str = ""
    changed: tuple[str, ...] = ()
    """What is other than in the round before; empty in the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalVoted:
    """A person has voted on an approval. The vote that decides it is followed by ApprovalDecided."""

    approval_id: str
    tool_call_id: str
    decision: ApprovalDecision
    person: str
    """Who voted: the principal, or with a delegate the person behind it."""
    authority: str
    """The person whose authority it was: `person`, or who had delegated it."""
    through: str
    """The delegate through which the person voted; empty without one."""
    reason: str
    arguments_hash: str
    round: int
    remember: Remember | None = None
    """What the person asks for later calls; None for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDecided:
    """An approval was decided, by the votes so far."""

    approval_id: str
    tool_call_id: str
    decision: ApprovalDecision
    decided_by: str
    reason: str
    arguments_hash: str
    round: int
    decided_through: str = ""
    remembered_from: str = ""
    """The approval whose remembered decision this is; empty if people voted on this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalExpiring:
    """An approval will expire soon."""

    approval_id: str
    tool_call_id: str
    expire_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalExtended:
    """There is more time to decide an approval."""

    approval_id: str
    tool_call_id: str
    ttl: timedelta
    """In all, from the request on."""
    expire_time: datetime | None
    """None while the session is suspended."""
    extended_by: str
    extended_through: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalExpired:
    """The time to decide has passed without a decision."""

    approval_id: str
    tool_call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalWithdrawn:
    """The question no longer stands: a cancel, an end of the session, or an edit of the arguments."""

    approval_id: str
    tool_call_id: str
    replaced_by: str = ""
    """After an edit, the approval of the next round; empty otherwise."""
