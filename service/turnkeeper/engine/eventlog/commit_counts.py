"""Counts what a stored changeset ended: approvals that left PENDING, and turns."""

import logging
from typing import Final

from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.turn import Turn
from turnkeeper.store.changeset import Changeset, Committed
from turnkeeper.telemetry.metrics import Metrics

_LOGGED_METADATA: Final = ("reason", "http_status", "cause", "tools", "limit")
"""The keys of a failed turn's error metadata that are logged; none of them holds content."""
logger = logging.getLogger(__name__)


def count_ended(changeset: Changeset, committed: Committed, metrics: Metrics) -> None:
    """Counts the turns and the approvals that the changeset ended, and logs the error of a turn that failed.

    An approval may be requested and decided in one changeset.
    """
    for approval in (*changeset.new_approvals, *(change.approval for change in changeset.approvals)):
        _count_closed(approval, metrics)
    for turn in changeset.turns:
        _count_ended(turn, metrics, last=committed.last_seq)


def _count_closed(approval: Approval, metrics: Metrics) -> None:
    """Counts an approval if it has left PENDING. The time to decide is that of people: decisions and expiries."""
    if approval.state is ApprovalState.PENDING:
        return
    metrics.approval(approval.state.value)
    by_people = approval.state is not ApprovalState.WITHDRAWN and not approval.remembered_from
    if by_people and approval.decide_time is not None:
        metrics.decision_time(max(0.0, (approval.decide_time - approval.create_time).total_seconds()))


def _count_ended(turn: Turn, metrics: Metrics, *, last: int) -> None:
    """Counts a turn if it has ended. `last`: the number of the last event of the changeset that ended it."""
    if not turn.state.ended:
        return
    seconds = (turn.update_time - turn.create_time).total_seconds()
    metrics.turn_finished(turn.state.value, agent=turn.agent, seconds=max(0.0, seconds))
    metrics.tokens("input", agent=turn.agent, count=turn.usage.input_tokens)
    metrics.tokens("output", agent=turn.agent, count=turn.usage.output_tokens)
    if turn.error is not None:
        metrics.error(turn.error.code)
        metadata = {key: turn.error.metadata[key] for key in _LOGGED_METADATA if key in turn.error.metadata}
        logger.warning(
            "a turn of agent %s failed: %s %s; RetryTurn can run it again while it is the session's last",
            *(turn.agent, turn.error.code.name, metadata or ""),
            extra={"session": turn.session_id, "turn": turn.id, "attempt": turn.attempt, "sequence": last},
        )
    elif turn.answer:
        metrics.message("ASSISTANT")
