"""Decisions on the time of pending approvals: the warning before their end, and more time."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from turnkeeper.domain import votes
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.approval_events import ApprovalExpiring, ApprovalExtended
from turnkeeper.domain.audit import NO_ORIGIN, Origin
from turnkeeper.domain.decider import Decider
from turnkeeper.engine.rules.approvals import expire_lapsed, pending_approval
from turnkeeper.engine.rules.audit import record_approval
from turnkeeper.engine.rules.unit_of_work import UnitOfWork

EXTEND_APPROVAL: Final = "extend_approval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A request for more time."""

    ttl: timedelta
    """The time to decide in all."""
    decider: Decider
    """Who asks for it: one who may decide."""
    origin: Origin = NO_ORIGIN
    """Who is on record for it."""


def extend(uow: UnitOfWork, approval_id: str, extension: Extension) -> Approval | None:
    """Stores that there is more time to decide an approval. Returns the approval, the same if it has that time already.

    If its time is over by the database's clock it expires instead, and is returned as EXPIRED. Returns None, with
    nothing changed, if it is no longer PENDING. Raises InvalidRequest for a time that it cannot have, PermissionDenied
    if the person may not decide it.
    """
    expired = {approval.id: approval for approval in expire_lapsed(uow)}
    if approval_id in expired:
        return expired[approval_id]
    approval = pending_approval(uow, approval_id)
    if approval is None:
        return None
    votes.check_eligible(approval, extension.decider, causers=uow.turn.causers)
    longer = approval.extended_to(extension.ttl)
    if longer is approval:
        return approval
    longer = replace(longer, extension_sequence=uow.next_sequence)
    uow.put_approval(longer, lapsed=False)
    record_approval(
        uow,
        EXTEND_APPROVAL,
        longer,
        origin=extension.origin,
        sequence=longer.extension_sequence,
        extended_by=extension.decider.person,
        ttl_seconds=f"{extension.ttl.total_seconds():g}",
    )
    uow.append(
        ApprovalExtended(
            approval_id=longer.id,
            tool_call_id=longer.tool_call_id,
            ttl=extension.ttl,
            expire_time=longer.expire_time if longer.time_left is None else None,
            extended_by=extension.decider.person,
            extended_through=extension.decider.through,
        ),
        turn=uow.turn,
    )
    return longer


def announce_expiring(uow: UnitOfWork) -> list[Approval]:
    """Stores `approval_expiring` for those of the turn's approvals whose warning is due. Returns them."""
    now = uow.snapshot.head.now
    due = [
        approval
        for approval in uow.approvals
        if approval.expiring_time is not None and approval.expiring_time <= now < approval.expire_time
    ]
    for approval in due:
        uow.put_approval(replace(approval, expiring_time=None, is_expiring=True), lapsed=False)
        event = ApprovalExpiring(
            approval_id=approval.id, tool_call_id=approval.tool_call_id, expire_time=approval.expire_time
        )
        uow.append(event, turn=uow.turn)
    return due
