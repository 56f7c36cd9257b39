"""Decisions that a session remembers: made with an approval, used by later calls, revoked by a person."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalKind, ApprovalState
from turnkeeper.domain.approval_events import ApprovalDecided
from turnkeeper.domain.audit import NO_ORIGIN, Origin
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.remembered import (
    RememberedDecision,
    RememberedState,
    RememberScope,
    binding_for,
    hash_of,
    remembered_from_votes,
    with_one_use_less,
    with_remembered,
    without,
)
from turnkeeper.domain.tool import Call, CallState, ToolSpec
from turnkeeper.domain.votes import already_voted
from turnkeeper.engine.rules.audit import record, record_approval
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import InvalidRequest

USE_REMEMBERED_DECISION = "use_remembered_decision"
REVOKE_REMEMBERED_DECISION = "revoke_remembered_decision"


def binding_of(spec: ToolSpec, ruling: Ruling, *, causers: Iterable[str]) -> str:
    """Returns one SHA-256 (hexadecimal) of all that a later call must share with an approved one, but its arguments.

    That is the tool's source, name, schema, description and class, the policy's rule, and who caused the call.
    """
    tool = [spec.source, spec.name, spec.schema_hash, spec.description, spec.tool_class.value, spec.asks]
    return hash_of([tool, [ruling.rule, ruling.rule_text], sorted(causers)])


def check_remember(approval: Approval, answer: Answer, call: Call) -> None:
    """Raises InvalidRequest if the answer asks to remember what must not be remembered. `call`: the approval's."""
    if answer.remember is None:
        return
    problem = ""
    if approval.kind is not ApprovalKind.TOOL_CALL or answer.decision is not ApprovalDecision.APPROVE:
        problem = "belongs to APPROVE of a TOOL_CALL alone"
    elif answer.edited_arguments_json:
        problem = "does not go with edited arguments: the model asked for something else"
    elif not approval.approvers.remember:
        problem = "is forbidden by the rule that asks"
    elif answer.remember.scope is RememberScope.TOOL and not approval.tool_class.may_start_again:
        problem = f"must be ARGUMENTS: {approval.tool} is {approval.tool_class}"
    elif answer.remember.scope is RememberScope.TOOL and call.untrusted:
        problem = "must be ARGUMENTS: the model had read what an untrusted tool returned"
    if problem:
        raise InvalidRequest(
            f"The request is not valid: remember {problem}.",
            session_id=approval.session_id,
            turn_id=approval.turn_id,
            fields={"remember": problem},
        )


def check_repeat(approval: Approval, answer: Answer) -> None:
    """Raises ApprovalAlreadyProcessed if the answer repeats a vote, but not what the vote was to remember."""
    vote = approval.vote_of(answer.by)
    if vote is None:
        return
    earlier = (vote.remember.scope, vote.remember.uses) if vote.remember is not None else None
    if earlier != ((answer.remember.scope, answer.remember.uses) if answer.remember is not None else None):
        raise already_voted(approval, answer, vote)


def with_request(voted: Approval, answer: Answer, *, now: datetime) -> Approval:
    """Returns the approval whose last vote is the answer, with what that asks to remember. `now`: the database's."""
    if answer.remember is None:
        return voted
    *earlier, vote = voted.votes
    return replace(voted, votes=(*earlier, replace(vote, remember=answer.remember.from_(now))))


def remember(uow: UnitOfWork, approved: Approval, call: Call) -> None:
    """Remembers a decided approval of this call for the session if each of its votes wants it."""
    votes = [vote for vote in approved.counted_votes if vote.decision is ApprovalDecision.APPROVE]
    wish = remembered_from_votes(vote.remember for vote in votes)
    if wish is None or not call.binding:
        return
    decision = RememberedDecision(
        approval_id=approved.id,
        tool_call_id=call.id,
        tool=call.tool,
        scope=wish.scope,
        binding=binding_for(wish.scope, call.binding, call.arguments_json),
        expire_time=wish.expire_time,
        uses_left=wish.uses,
        decided_by=tuple(vote.person for vote in votes),
        decided_through=approved.decided_through,
    )
    uow.append(decision, turn=uow.turn)
    uow.session = replace(uow.session, remembered=with_remembered(uow.session.remembered, decision))


def approve_by_memory(uow: UnitOfWork, pending: Approval) -> bool:
    """Approves an approval that this decision has just requested, if the session remembers a decision that covers it.

    It is then born APPROVED, names the decision's approval, and takes one of its uses; the call may start. Returns
    False, with nothing changed, if a person must decide: also while the outcome of a call of the tool is unknown.
    """
    call = next(call for call in uow.calls if call.id == pending.tool_call_id)
    now = uow.snapshot.head.now
    known = uow.session.remembered
    decision = next((one for one in known if _covers(one, call, at=now)), None)
    if decision is None or pending.kind is not ApprovalKind.TOOL_CALL or uow.session.unknown_calls(call.tool):
        return False
    approved = replace(
        pending.unpaused(now=now),
        state=ApprovalState.APPROVED,
        decision=ApprovalDecision.APPROVE,
        decided_by=decision.decided_by[-1],
        decided_through=decision.decided_through,
        decide_time=uow.at,
        sequence=uow.next_sequence,
        remembered_from=decision.approval_id,
    )
    uow.close_approval(approved, lapsed=None)
    record_approval(
        uow,
        USE_REMEMBERED_DECISION,
        approved,
        origin=NO_ORIGIN,
        sequence=approved.sequence,
        remembered_from=approved.remembered_from,
        decided_by=approved.decided_by,
    )
    uow.append(
        ApprovalDecided(
            approval_id=approved.id,
            tool_call_id=approved.tool_call_id,
            decision=ApprovalDecision.APPROVE,
            decided_by=approved.decided_by,
            decided_through=approved.decided_through,
            reason="",
            arguments_hash=approved.arguments_hash,
            round=approved.round,
            remembered_from=decision.approval_id,
        ),
        turn=uow.turn,
    )
    uow.put_call(replace(call, state=CallState.READY))
    uow.session = replace(uow.session, remembered=with_one_use_less(known, decision.approval_id))
    return True


def revoke(uow: UnitOfWork, approval_id: str, *, by: str, origin: Origin) -> int:
    """Revokes a remembered decision. `by` is the principal, `origin` goes on record.

    Returns the number of its event; 0, with nothing changed, if the session does not remember it (any more).
    """
    known = uow.session.remembered
    decision = next((decision for decision in known if decision.approval_id == approval_id), None)
    if decision is None:
        return 0
    sequence = uow.next_sequence
    uow.append(replace(decision, state=RememberedState.REVOKED, revoked_by=by))
    uow.session = replace(uow.session, remembered=without(known, approval_id))
    details = {"tool": decision.tool, "uses_left": str(decision.uses_left)}
    record(uow, REVOKE_REMEMBERED_DECISION, approval_id, origin=origin, sequence=sequence, details=details)
    return sequence


def _covers(decision: RememberedDecision, call: Call, *, at: datetime) -> bool:
    """Returns True if the decision approves the call. One on a whole tool approves no untrusted call."""
    if decision.scope is RememberScope.TOOL and call.untrusted:
        return False
    return decision.covers(call.binding, call.arguments_json, at=at)
