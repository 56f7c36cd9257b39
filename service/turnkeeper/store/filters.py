"""The filters of lists of sessions and approvals. An empty field matches everything; all that are set must match."""

from dataclasses import dataclass
from datetime import datetime

from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.session import SessionState


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFilter:
    """Selects sessions."""

    states: tuple[SessionState, ...] = ()
    agent: str = ""
    owner: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    """Names with values; a session must have all of them."""
    created_after: datetime | None = None
    """Inclusive."""
    created_before: datetime | None = None
    """Exclusive."""
    newest_first: bool = True
    """By the time of creation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalFilter:
    """Selects approvals."""

    states: tuple[ApprovalState, ...] = ()
    kind: str = ""
    session_id: str = ""
    tool: str = ""
    requester: str = ""
    decided_by: str = ""
    newest_first: bool = False
    """By the time of creation."""
