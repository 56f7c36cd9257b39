"""Votes: who may decide an approval, and when the votes are enough."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from turnkeeper.domain.approval import (
    ANSWERS,
    Answer,
    Approval,
    ApprovalDecision,
    ApprovalState,
    Vote,
)
from turnkeeper.domain.decider import Decider
from turnkeeper.domain.newer_version import is_unspecified, newer_version_needed
from turnkeeper.errors import (
    ApprovalAlreadyProcessed,
    ArgumentsHashMismatch,
    InvalidRequest,
    PermissionDenied,
)

LETS_RUN: Final = frozenset({ApprovalDecision.APPROVE, ApprovalDecision.RETRY})
"""The decisions by which a call runs. They need as many persons as the rule states."""
_BY_ONE: Final = frozenset({ApprovalDecision.MARK_DONE, ApprovalDecision.GIVE_UP})
"""The decisions that one person makes."""
_NAMED: Final = 500
"""Characters of the groups, and of the principals, that a refusal names at most."""

_WITHDRAWN = {
    False: "The approval was withdrawn: its turn was cancelled, or its session ended.",
    True: "The approval was withdrawn: the arguments were edited, and replaced_by names the approval of that round.",
}


class Ineligible(StrEnum):
    """Why a person may not decide an approval; the metadata `why` of the refusal."""

    REQUESTER = "requester"
    """The person caused the call."""
    NOT_NAMED = "not_named"
    """The rule names others."""
    DELEGATE = "delegate"
    """The rule asks for the person's own call, and a delegate made it: the vote's, or that which lent the authority."""


_REASONS: Final[Mapping[Ineligible, str]] = {
    Ineligible.REQUESTER: "Who caused the call cannot decide on it.",
    Ineligible.NOT_NAMED: "The rule that asks names others.",
    Ineligible.DELEGATE: "The rule that asks takes no decision that a delegate makes on behalf of a person.",
}


def cast(
    approval: Approval, answer: Answer, *, causers: frozenset[str] = frozenset(), at: datetime, sequence: int
) -> Approval:
    """Returns the approval with the answer as a vote: decided if the votes are enough, else PENDING.

    Returns this same approval if the person repeats a vote. `causers` are the people who caused the call: votes of
    those who did so after they had voted are taken out. `sequence` is the number of the vote's event. The answer's
    edited arguments are left out of it.

    Raises ApprovalAlreadyProcessed if the approval is not pending or the person has voted otherwise, PermissionDenied
    if the person may not decide it. Raises ArgumentsHashMismatch if the person saw other arguments, ServiceUnavailable
    for a kind or state that only a newer version knows. Raises InvalidRequest if this kind does not allow the decision,
    and for MARK_DONE without a result unless there is a late one. The caller checks first that the
    approval has not expired: only the database's clock decides that.
    """
    if approval.state is not ApprovalState.PENDING:
        return repeated(approval, answer)
    _check_kind(approval, answer)
    earlier = approval.vote_of(answer.by)
    if earlier is not None and _is_same(earlier, answer):
        return approval
    approval = _without_votes_of(_excluded(approval, causers), approval)
    authority = _authority(approval, answer.decider, causers)
    _check_content(approval, answer)
    taken_back = [vote for vote in approval.counted_votes if _takes_back(vote, answer)]
    if standing := [vote for vote in _overlapping(approval, answer.decider, authority) if vote not in taken_back]:
        raise already_voted(approval, answer, standing[0])
    vote = Vote(
        person=answer.by,
        authority=authority,
        through=answer.decider.through,
        decision=answer.decision,
        arguments_hash=answer.arguments_hash,
        at=at,
        reason=answer.reason,
        sequence=sequence,
    )
    kept = (vote for vote in approval.counted_votes if vote not in taken_back)
    voted = replace(approval, votes=(*kept, vote))
    if answer.decider.identified and count(voted, answer.decision) < needed(voted, answer.decision):
        return voted
    return replace(
        voted,
        state=ANSWERS[approval.kind][answer.decision],
        decision=answer.decision,
        decided_by=answer.by,
        decided_through=answer.decider.through,
        reason=answer.reason,
        decide_time=at,
        result_json=answer.result_json,
    )


def count(approval: Approval, decision: ApprovalDecision) -> int:
    """Returns how many distinct persons made this decision on what the approval shows now.

    Neither who decided nor whose authority it was counts twice.
    """
    votes = [vote for vote in approval.counted_votes if vote.decision is decision]
    return min(len({vote.person for vote in votes}), len({vote.authority for vote in votes}))


def needed(approval: Approval, decision: ApprovalDecision) -> int:
    """Returns how many distinct persons must make this decision until it is the approval's."""
    approvers = approval.approvers
    if decision in _BY_ONE:
        return 1
    if decision in LETS_RUN:
        return approvers.k
    return 1 if approvers.veto else approvers.reject_at or approvers.k


def missing(approval: Approval) -> int:
    """Returns how many more persons must let the call run; 0 once the approval is no longer PENDING."""
    if approval.state is not ApprovalState.PENDING:
        return 0
    running = next((decision for decision in ANSWERS.get(approval.kind, ()) if decision in LETS_RUN), None)
    return 0 if running is None else max(0, needed(approval, running) - count(approval, running))


def sequence_of(approval: Approval, person: str) -> int:
    """Returns the number of the event that a person's decision led to: the approval's own if that vote decided it."""
    vote = approval.vote_of(person)
    decided = approval.decision is not None and approval.decided_by == person
    return approval.sequence if decided or vote is None else vote.sequence


def is_asked(approval: Approval, decider: Decider) -> bool:
    """Returns True if the person may decide the approval while it is PENDING: it is named, and did not cause it."""
    return not decider.identified or not isinstance(_authorities(approval, decider, approval.excluded), Ineligible)


def has_to_decide(approval: Approval, decider: Decider) -> bool:
    """Returns True if the approval waits for the person: it is PENDING, and the person has not voted."""
    voted = any(decider.person in vote.people for vote in approval.counted_votes)
    return approval.state is ApprovalState.PENDING and not voted and is_asked(approval, decider)


def check_eligible(approval: Approval, decider: Decider, *, causers: frozenset[str]) -> None:
    """Raises PermissionDenied if the person may not decide the approval. `causers`: who caused the call."""
    _authority(approval, decider, causers)


def _authority(approval: Approval, decider: Decider, causers: frozenset[str]) -> str:
    """Returns the person whose authority a decision has: the decider's own if it can be, else a lent one.

    Raises PermissionDenied if there is none.
    """
    if not decider.identified:
        return decider.person
    authorities = _authorities(approval, decider, _excluded(approval, causers))
    if isinstance(authorities, Ineligible):
        raise _ineligible(approval, authorities)
    free = (person for person in authorities if not _overlapping(approval, decider, person))
    return next(free, authorities[0])


def _authorities(approval: Approval, decider: Decider, excluded: frozenset[str]) -> list[str] | Ineligible:
    """Returns the people by whose authority the person may decide, or why it may not. `excluded`: who may not."""
    approvers = approval.approvers
    if decider.person in excluded:
        return Ineligible.REQUESTER
    if approvers.direct and decider.through:
        return Ineligible.DELEGATE
    named = [
        mandate
        for mandate in decider.mandates
        if mandate.person not in excluded and approvers.name(mandate.person, mandate.groups)
    ]
    if not named:
        return Ineligible.NOT_NAMED
    taken = [mandate.person for mandate in named if not (approvers.direct and mandate.through)]
    return taken or Ineligible.DELEGATE


def _excluded(approval: Approval, causers: frozenset[str]) -> frozenset[str]:
    return causers if approval.approvers.exclude_requester else frozenset()


def _without_votes_of(people: frozenset[str], approval: Approval) -> Approval:
    """Returns the approval without the votes that count for one of these people."""
    return replace(approval, votes=tuple(vote for vote in approval.votes if people.isdisjoint(vote.people)))


def _overlapping(approval: Approval, decider: Decider, authority: str) -> list[Vote]:
    """Returns the votes that count for the decider, or for the person whose authority it would be."""
    people = {decider.person, authority}
    return [vote for vote in approval.counted_votes if not people.isdisjoint(vote.people)]


def _is_same(vote: Vote, answer: Answer) -> bool:
    return (vote.decision, vote.arguments_hash) == (answer.decision, answer.arguments_hash)


def _takes_back(vote: Vote, answer: Answer) -> bool:
    """Returns True if the answer replaces the vote: a person takes back what lets the call run.

    A person's own word goes before that of a delegate who voted with the person's authority.
    """
    return vote.decision in LETS_RUN and answer.decision not in LETS_RUN and answer.by in vote.people


def _check_kind(approval: Approval, answer: Answer) -> None:
    if is_unspecified(approval.kind) or is_unspecified(approval.state):
        raise newer_version_needed(session_id=approval.session_id)
    if answer.decision not in ANSWERS[approval.kind]:
        allowed = _alternatives(ANSWERS[approval.kind])
        message = f"An approval of kind {approval.kind} takes {allowed}."
        raise InvalidRequest(message, fields={"decision": f"must be {allowed}"})


def _check_content(approval: Approval, answer: Answer) -> None:
    if answer.arguments_hash != approval.arguments_hash:
        raise ArgumentsHashMismatch(
            session_id=approval.session_id,
            turn_id=approval.turn_id,
            metadata={"approval_id": approval.id, "arguments_hash": approval.arguments_hash},
        )
    if answer.decision is ApprovalDecision.MARK_DONE and not (answer.result_json or approval.late_result_json):
        problem = "is required with MARK_DONE, because the tool has not returned late"
        raise InvalidRequest(f"The request is not valid: result_json {problem}.", fields={"result_json": problem})


def repeated(approval: Approval, answer: Answer) -> Approval:
    """Returns an approval that is no longer PENDING if the answer repeats a vote on it.

    Raises ApprovalAlreadyProcessed otherwise, and as `cast` for a decision that the approval's kind does not allow.
    """
    _check_kind(approval, answer)
    decided = (approval.decision, approval.decided_by, approval.arguments_hash, approval.result_json)
    if decided == (answer.decision, answer.by, answer.arguments_hash, answer.result_json):
        return approval
    vote = approval.vote_of(answer.by)
    is_other_decider = approval.decision is not None and approval.decided_by != answer.by
    if vote is not None and is_other_decider and _is_same(vote, answer):
        return approval
    withdrawn = approval.state is ApprovalState.WITHDRAWN
    raise ApprovalAlreadyProcessed(
        _WITHDRAWN[bool(approval.replaced_by)] if withdrawn else "",
        session_id=approval.session_id,
        turn_id=approval.turn_id,
        metadata=approval.outcome | (_own(vote) if vote is not None else {}),
    )


def already_voted(approval: Approval, answer: Answer, vote: Vote) -> ApprovalAlreadyProcessed:
    """Returns the refusal of an answer that an earlier vote stands against."""
    if vote.person == answer.by:
        message = "You have voted on this approval already; what lets a call run can be taken back, nothing else."
        own = _own(vote)
    else:
        message = "Another vote counts for the same person, and each counts once in an approval."
        own = {"vote": vote.decision.value, "voted_by": vote.person, "authority": vote.authority}
    return ApprovalAlreadyProcessed(
        message,
        session_id=approval.session_id,
        turn_id=approval.turn_id,
        metadata={"state": approval.state.value, "approval_id": approval.id, **own},
    )


def _own(vote: Vote) -> dict[str, str]:
    return {"your_vote": vote.decision.value, "your_vote_sequence": str(vote.sequence)}


def _ineligible(approval: Approval, why: Ineligible) -> PermissionDenied:
    """Returns the refusal of a person who may not decide. It names who may, and how many it takes."""
    approvers = approval.approvers
    groups, principals = _listed(approvers.groups), _listed(approvers.principals)
    people = [
        *([f"members of {groups}"] if groups else []),
        *([principals] if principals else []),
    ]
    who = " or ".join(people) or "any approver"
    others = ", not who caused the call" if approvers.exclude_requester else ""
    metadata = {
        "approval_id": approval.id,
        "why": why.value,
        "groups": groups,
        "principals": principals,
        "needed": str(approvers.k),
        "missing": str(missing(approval)),
    }
    return PermissionDenied(
        f"{_REASONS[why]} Needed: {approvers.k} of {who}{others}.",
        session_id=approval.session_id,
        turn_id=approval.turn_id,
        metadata={name: value for name, value in metadata.items() if value},
    )


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(sorted(names))
    return text if len(text) <= _NAMED else f"{text[:_NAMED]}…"


def _alternatives(decisions: Iterable[ApprovalDecision]) -> str:
    """Returns "A, B or C"."""
    *first, last = (decision.value for decision in decisions)
    return f"{', '.join(first)} or {last}"
