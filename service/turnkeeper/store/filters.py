"""What lists of sessions and approvals are asked for."""

from dataclasses import dataclass
from datetime import datetime

from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.session import SessionState


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFilter:
    """All that are set must match; empty matches everything."""

    states: tuple[SessionState, ...] = ()
    agent: str = ""
    owner: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    newest_first: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalFilter:
    """All that are set must match; empty matches everything."""

    states: tuple[ApprovalState, ...] = ()
    kind: str = ""
    session_id: str = ""
    tool: str = ""
