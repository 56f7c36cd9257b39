"""The broken versions of who decides, what asks, and what an inbox shows."""

import asyncio
from dataclasses import replace

from turnkeeper.domain import votes
from turnkeeper.domain.approval import Approval, ApprovalDecision, Vote
from turnkeeper.domain.decider import Decider
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction
from turnkeeper.engine.rules import approval_edits, approvals
from turnkeeper.engine.rules.approval_edits import Edit
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.approval_watcher import ApprovalBatch, ApprovalWatcher
from turnkeeper.policy import policies

_authority = votes._authority  # noqa: SLF001 - what is broken
_open_next_round = approval_edits.open_next_round
_next_page = ApprovalWatcher._next_page  # noqa: SLF001 - what is broken


def quorum_by_vote() -> None:
    """Counts votes, not people: one person and its own delegate are two."""

    def count(approval: Approval, decision: ApprovalDecision) -> int:
        return sum(vote.decision is decision for vote in approval.counted_votes)

    def overlapping(approval: Approval, decider: Decider, authority: str) -> list[Vote]:
        return [vote for vote in approval.counted_votes if vote.person == decider.person]

    votes.count = count
    votes._overlapping = overlapping  # noqa: SLF001 - what is broken


def requester_through_delegation() -> None:
    """Excludes who caused the call, and not who decides with that one's authority."""

    def authority(approval: Approval, decider: Decider, causers: frozenset[str]) -> str:
        lent = {mandate.person for mandate in decider.mandates[1:]}
        return _authority(approval, decider, causers - lent)

    votes._authority = authority  # noqa: SLF001 - what is broken


def edit_keeps_votes() -> None:
    """Lets the votes on a call count on after its arguments were edited."""

    def open_next_round(uow: UnitOfWork, approval: Approval, edit: Edit) -> Approval:
        opened = _open_next_round(uow, approval, edit)
        kept = tuple(replace(vote, arguments_hash=opened.arguments_hash) for vote in approval.votes)
        opened = replace(opened, votes=kept)
        uow.put_approval(opened)
        return opened

    approvals.open_next_round = open_next_round  # type: ignore[attr-defined]


def error_means_auto() -> None:
    """Lets a call run when the condition of the rule that would ask cannot be read."""

    def action(rule: PolicyRule, error: str) -> PolicyAction:
        return PolicyAction.AUTO if error else rule.action

    policies._action = action  # noqa: SLF001 - what is broken


def snapshot_before_subscription() -> None:
    """Subscribes a watcher once its snapshot is read: what is requested in between never comes."""

    def enter(self: ApprovalWatcher) -> ApprovalWatcher:
        return self

    async def next_page(self: ApprovalWatcher) -> ApprovalBatch:
        batch = await _next_page(self)
        if batch.caught_up:
            await asyncio.sleep(0.5)
            self._inbox.enter(self)
        return batch

    ApprovalWatcher.__enter__ = enter  # type: ignore[method-assign,assignment]
    ApprovalWatcher._next_page = next_page  # type: ignore[method-assign]  # noqa: SLF001 - what is broken


DECISION_PATCHES = (
    quorum_by_vote,
    requester_through_delegation,
    edit_keeps_votes,
    error_means_auto,
    snapshot_before_subscription,
)
