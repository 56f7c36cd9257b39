"""Decisions on pending approvals: voted on as they stand, or with edited arguments, or expired."""

from dataclasses import replace
from datetime import timedelta
from typing import assert_never

from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalKind, ApprovalState
from turnkeeper.domain.approval_events import ApprovalDecided, ApprovalExpired, ApprovalVoted
from turnkeeper.domain.tool import Call, CallState, ToolOutcome, ToolResult
from turnkeeper.domain.votes import already_voted, cast
from turnkeeper.engine.rules.approval_edits import Edit, open_next_round
from turnkeeper.engine.rules.audit import record_decision
from turnkeeper.engine.rules.remembered import check_remember, check_repeat, remember, with_request
from turnkeeper.engine.rules.unit_of_work import UnitOfWork

EXPIRED_AT_ONCE = 64
"""Approvals of one turn that one changeset expires, at most."""


def decide(uow: UnitOfWork, approval_id: str, answer: Answer) -> Approval | None:
    """Stores the answer to an approval as a vote. If the votes are enough, also what the decision does to the call, and
    that the turn goes on if it may.

    Returns the approval: decided, or PENDING if more votes are needed. If its time is over by the database's clock it
    expires instead, and is returned as EXPIRED. A repeated vote changes nothing. Returns None, with nothing changed, if
    the approval is no longer PENDING. Raises what `votes.cast` raises.
    """
    approval = pending_approval(uow, approval_id)
    if approval is None:
        return None
    if approval.expire_time <= uow.snapshot.head.now:
        return _expire(uow, approval, answer=answer)
    check_remember(approval, answer, _call_of(uow, approval))
    voted = cast(approval, answer, causers=uow.turn.causers, at=uow.at, sequence=uow.next_sequence)
    if voted is approval:
        check_repeat(approval, answer)
        return approval
    voted = with_request(voted, answer, now=uow.snapshot.head.now)
    _append_vote(uow, voted)
    if voted.state is ApprovalState.PENDING:
        uow.put_approval(voted, lapsed=False)
        record_decision(uow, voted, answer)
        return voted
    decided = replace(voted, sequence=uow.next_sequence)
    _store_decision(uow, decided, answer)
    return decided


def decide_with_edit(uow: UnitOfWork, approval_id: str, answer: Answer, edit: Edit) -> Approval | None:
    """Withdraws an approval and opens the call's next round with the edited arguments; the answer is its first vote.

    Votes of the old round count no more. The author of the edit must be eligible in both rounds. Returns the next
    round's approval; for an approval that has expired or is no longer PENDING, as `decide` does. Raises what
    `votes.cast` raises, and ApprovalAlreadyProcessed if the author has voted in the old round.
    """
    approval = pending_approval(uow, approval_id)
    if approval is None:
        return None
    if approval.expire_time <= uow.snapshot.head.now:
        return _expire(uow, approval, answer=answer)
    answer = replace(answer, result_json="")
    if vote := approval.vote_of(answer.by):
        raise already_voted(approval, answer, vote)
    # refuses what the approval does not take, before it is withdrawn
    cast(approval, answer, causers=uow.turn.causers, at=uow.at, sequence=uow.next_sequence)
    next_round = open_next_round(uow, approval, edit)
    return decide(uow, next_round.id, replace(answer, arguments_hash=next_round.arguments_hash))


def expire_lapsed(uow: UnitOfWork, *, wake: timedelta = timedelta()) -> list[Approval]:
    """Expires the turn's approvals past their `expire_time`, and closes their calls with synthetic results.

    If the turn goes on, it is due after `wake`. Returns the expired ones: at most EXPIRED_AT_ONCE, none if no PENDING
    approval of the turn has lapsed.
    """
    lapsed = [approval for approval in uow.approvals if approval.expire_time <= uow.snapshot.head.now]
    return [_expire(uow, approval, wake=wake) for approval in lapsed[:EXPIRED_AT_ONCE]]


def pending_approval(uow: UnitOfWork, approval_id: str) -> Approval | None:
    """Returns the turn's approval with this id; None if it is no longer PENDING."""
    return next((approval for approval in uow.approvals if approval.id == approval_id), None)


def _expire(
    uow: UnitOfWork, approval: Approval, *, wake: timedelta = timedelta(), answer: Answer | None = None
) -> Approval:
    """Expires an approval. `answer`: the decision that came too late, which goes on record with it."""
    expired = replace(approval.closed(ApprovalState.EXPIRED, at=uow.at), sequence=uow.next_sequence)
    uow.close_approval(expired, lapsed=True)
    if answer is not None:
        record_decision(uow, expired, answer)
    uow.append(ApprovalExpired(approval_id=approval.id, tool_call_id=approval.tool_call_id), turn=uow.turn)
    if approval.kind is ApprovalKind.OUTCOME:
        _give_up(uow, approval)
    else:
        uow.close_call_as(_call_of(uow, approval), ToolOutcome.EXPIRED)
    uow.resume_if_answered(wake=wake)
    return expired


def _call_of(uow: UnitOfWork, approval: Approval) -> Call:
    return next(call for call in uow.calls if call.id == approval.tool_call_id)


def _append_vote(uow: UnitOfWork, approval: Approval) -> None:
    """Appends the event of the approval's last vote."""
    vote = approval.votes[-1]
    uow.append(
        ApprovalVoted(
            approval_id=approval.id,
            tool_call_id=approval.tool_call_id,
            decision=vote.decision,
            person=vote.person,
            authority=vote.authority,
            through=vote.through,
            reason=vote.reason,
            arguments_hash=vote.arguments_hash,
            round=approval.round,
            remember=vote.remember,
        ),
        turn=uow.turn,
    )


def _store_decision(uow: UnitOfWork, decided: Approval, answer: Answer) -> None:
    uow.close_approval(decided, lapsed=False)
    record_decision(uow, decided, answer)
    uow.append(
        ApprovalDecided(
            approval_id=decided.id,
            tool_call_id=decided.tool_call_id,
            decision=answer.decision,
            decided_by=decided.decided_by,
            decided_through=decided.decided_through,
            reason=answer.reason,
            arguments_hash=decided.arguments_hash,
            round=decided.round,
        ),
        turn=uow.turn,
    )
    call = _call_of(uow, decided)
    match answer.decision:
        case ApprovalDecision.APPROVE:
            uow.put_call(replace(call, state=CallState.READY))
            remember(uow, decided, call)
        case ApprovalDecision.REJECT:
            uow.close_call_as(call, ToolOutcome.REJECTED, reason=answer.reason)
        case ApprovalDecision.RETRY:
            uow.session = uow.session.without_unknown(call.id)
            uow.put_call(replace(call, state=CallState.READY, unsettled=False))
        case ApprovalDecision.MARK_DONE:
            uow.session = uow.session.without_unknown(call.id)
            uow.close_call(replace(call, unsettled=False), _result_of(decided, call))
        case ApprovalDecision.GIVE_UP:
            _give_up(uow, decided, reason=answer.reason)
        case _:
            assert_never(answer.decision)
    uow.resume_if_answered()


def _result_of(decided: Approval, call: Call) -> ToolResult:
    """Returns the result that a MARK_DONE decision carries; without one, the late result as the tool gave it."""
    if decided.result_json:
        return ToolResult(outcome=ToolOutcome.OK, result_json=decided.result_json)
    return ToolResult(outcome=call.late_outcome or ToolOutcome.OK, result_json=decided.late_result_json)


def _give_up(uow: UnitOfWork, approval: Approval, *, reason: str = "") -> None:
    """Closes a call as UNKNOWN. The session keeps it in its list of unknown calls."""
    call = replace(_call_of(uow, approval), unsettled=False)
    uow.close_call_as(call, ToolOutcome.UNKNOWN, reason=reason)
