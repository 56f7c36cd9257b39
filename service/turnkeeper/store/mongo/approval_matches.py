"""The filters of approvals as conditions of the database, and the field by which their deciders find them."""

from typing import Final

from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.decider import Decider, Mandate, keys_for, keys_of
from turnkeeper.store.filters import ApprovalFilter
from turnkeeper.store.mongo.client import Document

DECIDERS: Final = "deciders"
"""The field with `decider.keys_of`. An approval of an older version lacks it: any approver may decide it."""
_FIELDS: Final = ("kind", "session_id", "tool", "agent", "requester")
"""The fields that an ApprovalFilter compares as they are."""
_PENDING: Final = {"state": ApprovalState.PENDING.value}


def deciders_of(approval: Approval) -> Document:
    """Returns the field that a new approval's document has for its deciders."""
    return {DECIDERS: list(keys_of(approval.approvers))}


def matching_approvals(tenant: str, where: ApprovalFilter) -> Document:
    """Returns the condition for the tenant's approvals that the filter selects."""
    match: Document = {"tenant": tenant}
    if len(where.states) == 1:
        match["state"] = where.states[0].value  # so that indexes of one state serve it
    elif where.states:
        match["state"] = {"$in": [state.value for state in where.states]}
    if where.latest is not None:
        match["expire_time"] = {"$lt": where.latest}
    match |= {name: getattr(where, name) for name in _FIELDS if getattr(where, name)}
    if where.seen_by:
        match["requester"] = where.seen_by if where.requester in ("", where.seen_by) else {"$in": []}
    if where.decidable_by is not None:
        may_wait = not where.states or ApprovalState.PENDING in where.states
        match |= {**_PENDING, **_waiting_for(where.decidable_by)} if may_wait else {"state": {"$in": []}}
    if where.voter:
        voted = {"$or": [{"votes.person": where.voter}, {"decided_by": where.voter}]}
        match["$and"] = [*match.get("$and", []), voted]
    return match


def _waiting_for(decider: Decider) -> Document:
    """Returns the condition for what waits for a person, as `votes.has_to_decide` has it."""
    if not decider.identified:
        return {}
    keys = sorted({key for mandate in decider.mandates for key in keys_for(mandate)})
    conditions = [_not_excluding(decider.person), {"$expr": {"$not": _has_vote_of(decider.person)}}]
    if decider.through:
        conditions.append({"approvers.direct": {"$ne": True}})
    lent = [mandate for mandate in decider.mandates if mandate.person != decider.person]
    if lent:
        conditions.append({"$or": [_by_authority_of(mandate) for mandate in decider.mandates]})
    return {**_with_key(keys), "$and": conditions}


def _by_authority_of(mandate: Mandate) -> Document:
    """Returns the condition for what the person of this authority may decide, or may have lent."""
    match = {**_with_key(keys_for(mandate)), **_not_excluding(mandate.person)}
    return {**match, "approvers.direct": {"$ne": True}} if mandate.through else match


def _with_key(keys: tuple[str, ...] | list[str]) -> Document:
    """Returns the condition for approvals with one of the keys; without keys for none."""
    return {DECIDERS: {"$in": [*keys, None] if keys else []}}


def _not_excluding(person: str) -> Document:
    not_caused = {"requester": {"$ne": person}, "causers": {"$ne": person}}
    return {"$or": [{"approvers.exclude_requester": False}, not_caused]}


def _has_vote_of(person: str) -> Document:
    """Returns the expression that is true if a vote on what the approval shows now counts for the person."""
    counts = {"$eq": ["$$vote.arguments_hash", "$arguments_hash"]}
    of_person = {"$in": [{"$literal": person}, ["$$vote.person", "$$vote.authority"]]}
    votes = {"input": {"$ifNull": ["$votes", []]}, "as": "vote", "in": {"$and": [counts, of_person]}}
    return {"$anyElementTrue": [{"$map": votes}]}
