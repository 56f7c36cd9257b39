"""Carried from service/turnkeeper/engine/approvals.py."""

from dataclasses import replace
from typing import assert_never

from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalKind, ApprovalState
from turnkeeper.domain.event import ApprovalDecided, ApprovalExpired
from turnkeeper.domain.tool import Call, CallState, ToolOutcome, ToolResult
from turnkeeper.engine.rules.approval_edits import Edit, open_next_round
from turnkeeper.engine.rules.unit_of_work import UnitOfWork


def decide(  # noqa: PLR0913 - what a decision says
    uow: UnitOfWork,
    approval_id: str,
    decision: ApprovalDecision,
    *,
    by: str,
    arguments_hash: str,
    reason: str,
    result_json: str = "",
) -> Approval | None:
    """The decided approval, or the expired one when its time is over; None when it is not PENDING any more."""
    approval = _pending(uow, approval_id)
    if approval is None:
        return None
    if approval.expire_time <= uow.snapshot.head.now:
        return _expire(uow, approval)
    decided = approval.decide(
        decision, by=by, arguments_hash=arguments_hash, reason=reason, at=uow.at, result_json=result_json
    )
    decided = replace(decided, sequence=uow.next_sequence)
    _store_decision(uow, decided, decision, reason=reason)
    return decided


def decide_with_edit(uow: UnitOfWork, approval_id: str, said: Answer, edit: Edit) -> Approval | None:
    """The next round's approval, decided by the edit's author; else as `decide`."""
    approval = _pending(uow, approval_id)
    if approval is None:
        return None
    if approval.expire_time <= uow.snapshot.head.now:
        return _expire(uow, approval)
    plain = {"by": said.by, "reason": said.reason}
    approval.decide(said.decision, arguments_hash=said.arguments_hash, at=uow.at, **plain)
    asked = open_next_round(uow, approval, edit)
    return decide(uow, asked.id, said.decision, arguments_hash=asked.arguments_hash, **plain)


def expire(uow: UnitOfWork, approval_id: str) -> Approval | None:
    """The expired approval; None when it is not PENDING any more, or its time is not over."""
    approval = _pending(uow, approval_id)
    if approval is None or approval.expire_time > uow.snapshot.head.now:
        return None
    return _expire(uow, approval)


def _expire(uow: UnitOfWork, approval: Approval) -> Approval:
    """Expiry writes the synthetic result, and re-queues when it was the last, in one step."""
    expired = replace(approval.closed(ApprovalState.EXPIRED, at=uow.at), sequence=uow.next_sequence)
    uow.close_approval(expired, lapsed=True)
    uow.append(ApprovalExpired(approval_id=approval.id, tool_call_id=approval.tool_call_id), turn=uow.turn)
    if approval.kind is ApprovalKind.OUTCOME:
        _give_up(uow, approval)
    else:
        uow.close_call_as(_call_of(uow, approval), ToolOutcome.EXPIRED)
    uow.resume_if_answered()
    return expired


def _pending(uow: UnitOfWork, approval_id: str) -> Approval | None:
    return next((approval for approval in uow.approvals if approval.id == approval_id), None)


def _call_of(uow: UnitOfWork, approval: Approval) -> Call:
    return next(call for call in uow.calls if call.id == approval.tool_call_id)


def _store_decision(uow: UnitOfWork, decided: Approval, decision: ApprovalDecision, *, reason: str) -> None:
    uow.close_approval(decided, lapsed=False)
    uow.append(
        ApprovalDecided(
            approval_id=decided.id,
            tool_call_id=decided.tool_call_id,
            decision=decision,
            decided_by=decided.decided_by,
            reason=reason,
            arguments_hash=decided.arguments_hash,
            round=decided.round,
        ),
        turn=uow.turn,
    )
    call = _call_of(uow, decided)
    match decision:
        case ApprovalDecision.APPROVE:
            uow.put_call(replace(call, state=CallState.READY))
        case ApprovalDecision.REJECT:
            uow.close_call_as(call, ToolOutcome.REJECTED, reason=reason)
        case ApprovalDecision.RETRY:
            uow.session = uow.session.without_unknown(call.id)
            uow.put_call(replace(call, state=CallState.READY, unsettled=False))
        case ApprovalDecision.MARK_DONE:
            uow.session = uow.session.without_unknown(call.id)
            done = ToolResult(outcome=ToolOutcome.OK, result_json=decided.result_json)
            uow.close_call(replace(call, unsettled=False), done)
        case ApprovalDecision.GIVE_UP:
            _give_up(uow, decided, reason=reason)
        case _:
            assert_never(decision)
    uow.resume_if_answered()


def _give_up(uow: UnitOfWork, approval: Approval, *, reason: str = "") -> None:
    """It stays unknown, the session goes on remembering it, and the model is told."""
    call = replace(_call_of(uow, approval), unsettled=False)
    uow.close_call_as(call, ToolOutcome.UNKNOWN, reason=reason)
