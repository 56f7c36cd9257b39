"""What goes on record of a vote, and of what an operator does to another one's session."""

from collections.abc import Mapping
from dataclasses import dataclass

from turnkeeper.domain.approval import Answer, Approval, ApprovalState
from turnkeeper.domain.audit import AuditRecord, Origin
from turnkeeper.domain.votes import count, needed, sequence_of
from turnkeeper.engine.rules.unit_of_work import UnitOfWork

DECIDE_APPROVAL = "decide_approval"
CANCEL_TURN = "cancel_turn"
WITHDRAW_APPROVAL = "withdraw_approval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A call that changes a session which its caller does not own: an operator's."""

    action: str
    """The RPC, such as `end_session`."""
    origin: Origin


def record(  # noqa: PLR0913 - what a record has of its own
    uow: UnitOfWork,
    action: str,
    target: str,
    *,
    origin: Origin,
    sequence: int,
    details: Mapping[str, str],
    outcome: str = "OK",
) -> None:
    """Puts an action on record together with its event of this number. `changeset` completes the record's id."""
    uow.audit.append(
        AuditRecord(
            tenant=uow.session.tenant,
            id="",
            session_id=uow.session.id,
            sequence=sequence,
            at=uow.at,
            action=action,
            target=target,
            outcome=outcome,
            origin=origin,
            details=details,
        )
    )


def record_approval(
    uow: UnitOfWork, action: str, approval: Approval, *, origin: Origin, sequence: int, **details: str
) -> None:
    """Puts on record what was done to an approval, as the approval is after it.

    It names the arguments by their hash: the session's log has them, and its deletion removes them there.
    """
    call = {
        "turn_id": approval.turn_id,
        "tool_call_id": approval.tool_call_id,
        "tool": approval.tool,
        "arguments_hash": approval.arguments_hash,
        "round": str(approval.round),
    }
    outcome = approval.state.value
    record(uow, action, approval.id, origin=origin, sequence=sequence, outcome=outcome, details=details | call)


def record_decision(uow: UnitOfWork, approval: Approval, answer: Answer) -> None:
    """Puts an answer to an approval on record, as the approval is after it."""
    record_approval(
        uow,
        DECIDE_APPROVAL,
        approval,
        origin=answer.origin,
        sequence=sequence_of(approval, answer.by),
        decision=answer.decision.value,
        decided_by=answer.by,
        **_vote_details(approval, answer),
    )


def record_operation(uow: UnitOfWork, operation: Operation | None, *, sequence: int, target: str = "") -> None:
    """Puts an operation on record together with its event of this number, unless there is none, or no change.

    `target`: the turn that it is about; empty: the session.
    """
    if operation is None or not uow.has_changes:
        return
    session = uow.session
    origin, details = operation.origin, {"owner": session.owner}
    record(uow, operation.action, target or session.id, origin=origin, sequence=sequence, details=details)


def _vote_details(approval: Approval, answer: Answer) -> dict[str, str]:
    """Returns how many votes there are, and whose authority this one has if it was delegated. An answer that came too
    late counts as none."""
    vote = approval.vote_of(answer.by)
    if vote is None or approval.state is ApprovalState.EXPIRED:
        return {}
    votes = {"votes": f"{count(approval, answer.decision)} of {needed(approval, answer.decision)}"}
    return votes | ({"authority": vote.authority} if vote.authority != vote.person else {})
