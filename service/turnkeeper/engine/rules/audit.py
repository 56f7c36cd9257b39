"""What goes on record of a vote, and of what an operator does to another one's session."""

from dataclasses import dataclass
from datetime import datetime

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


def decision_record(approval: Approval, answer: Answer, *, at: datetime) -> AuditRecord:
    """Returns the record of an answer to an approval, as the approval is after it. Its id is completed with its
    changeset's.

    It names the arguments by their hash: the session's log has them, and its deletion removes them there.
    """
    return AuditRecord(
        tenant=approval.tenant,
        id="",
        session_id=approval.session_id,
        sequence=sequence_of(approval, answer.by),
        at=at,
        action=DECIDE_APPROVAL,
        target=approval.id,
        outcome=approval.state.value,
        origin=answer.origin,
        details={
            "decision": answer.decision.value,
            "decided_by": answer.by,
            "turn_id": approval.turn_id,
            "tool_call_id": approval.tool_call_id,
            "tool": approval.tool,
            "arguments_hash": approval.arguments_hash,
            "round": str(approval.round),
            **_vote_details(approval, answer),
        },
    )


def withdrawal_record(approval: Approval, *, by: Origin, sequence: int, at: datetime) -> AuditRecord:
    """Returns the record of an approval that a message withdraws, with its event of this number."""
    return AuditRecord(
        tenant=approval.tenant,
        id="",
        session_id=approval.session_id,
        sequence=sequence,
        at=at,
        action=WITHDRAW_APPROVAL,
        target=approval.id,
        outcome=ApprovalState.WITHDRAWN.value,
        origin=by,
        details={
            "turn_id": approval.turn_id,
            "tool_call_id": approval.tool_call_id,
            "tool": approval.tool,
            "arguments_hash": approval.arguments_hash,
            "round": str(approval.round),
        },
    )


def _vote_details(approval: Approval, answer: Answer) -> dict[str, str]:
    """Returns how many votes there are, and whose authority this one has if it was delegated. An answer that came too
    late counts as none."""
    vote = approval.vote_of(answer.by)
    if vote is None or approval.state is ApprovalState.EXPIRED:
        return {}
    votes = {"votes": f"{count(approval, answer.decision)} of {needed(approval, answer.decision)}"}
    return votes | ({"authority": vote.authority} if vote.authority != vote.person else {})


def record_operation(uow: UnitOfWork, operation: Operation | None, *, sequence: int, target: str = "") -> None:
    """Puts an operation on record together with its event of this number, unless there is none, or no change.

    `target`: the turn that it is about; empty: the session.
    """
    if operation is None or not uow.has_changes:
        return
    session = uow.session
    uow.audit.append(
        AuditRecord(
            tenant=session.tenant,
            id="",
            session_id=session.id,
            sequence=sequence,
            at=uow.at,
            action=operation.action,
            target=target or session.id,
            outcome="OK",
            origin=operation.origin,
            details={"owner": session.owner},
        )
    )
