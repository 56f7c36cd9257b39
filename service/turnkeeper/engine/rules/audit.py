"""What goes on record of a decision."""

from datetime import datetime

from turnkeeper.domain.approval import Answer, Approval
from turnkeeper.domain.audit import AuditRecord

DECIDE_APPROVAL = "decide_approval"


def decision_record(approval: Approval, answer: Answer, *, at: datetime) -> AuditRecord:
    """Returns the record of an answer to an approval, as the approval is after it. Its id is completed with its
    changeset's.

    It names the arguments by their hash: the session's log has them, and its deletion removes them there.
    """
    return AuditRecord(
        tenant=approval.tenant,
        id="",
        session_id=approval.session_id,
        sequence=approval.sequence,
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
        },
    )
