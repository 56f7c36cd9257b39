"""The filters of lists of sessions and approvals. An empty field matches everything; all that are set must match."""

from dataclasses import dataclass
from datetime import datetime

from turnkeeper.domain import votes
from turnkeeper.domain.approval import NEVER, Approval, ApprovalState
from turnkeeper.domain.decider import Decider
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
    agent: str = ""
    requester: str = ""
    seen_by: str = ""
    """The requester whose approvals alone the caller may see."""
    voter: str = ""
    """Who has voted, or decided it in a version without votes."""
    decidable_by: Decider | None = None
    """Only those that wait for this person's decision."""
    expire_before: datetime | None = None
    """Exclusive. An approval whose clock is paused never expires."""
    newest_first: bool = False
    """By the time of creation."""

    @property
    def latest(self) -> datetime | None:
        """Returns the time before which an approval must expire; None for any."""
        return None if self.expire_before is None else min(self.expire_before, NEVER)

    @property
    def only_pending(self) -> bool:
        """Returns True if all that it selects is PENDING: none of that belongs to a deleted session."""
        return self.decidable_by is not None or self.states == (ApprovalState.PENDING,)

    def concerns(self, approval: Approval) -> bool:
        """Returns True if all matches that does not change as long as an approval exists."""
        return (
            self.seen_by in ("", approval.requester)
            and self.requester in ("", approval.requester)
            and self.session_id in ("", approval.session_id)
            and self.tool in ("", approval.tool)
            and self.agent in ("", approval.agent)
            and self.kind in ("", approval.kind)
            and (self.decidable_by is None or votes.is_asked(approval, self.decidable_by))
        )

    def matches(self, approval: Approval) -> bool:
        """Returns True if the filter selects the approval as it is."""
        return (
            self.concerns(approval)
            and (not self.states or approval.state in self.states)
            and self.voter in ("", approval.decided_by, *(vote.person for vote in approval.votes))
            and (self.decidable_by is None or votes.has_to_decide(approval, self.decidable_by))
            and (self.latest is None or approval.expire_time < self.latest)
        )
