"""The filters of requests for approvals: what the caller asks for, within what it may see."""

from datetime import datetime

from turnkeeper.domain.approval import ApprovalState
from turnkeeper.engine.delegations import Delegations
from turnkeeper.identity.caller import Caller
from turnkeeper.pb.v1 import approval_pb2, event_pb2
from turnkeeper.rpc import validation
from turnkeeper.rpc.visible import sees_all_approvals
from turnkeeper.store.filters import ApprovalFilter

Request = approval_pb2.ListApprovalsRequest | approval_pb2.WatchApprovalsRequest | approval_pb2.CountApprovalsRequest
"""What has the fields of the filters."""


async def filter_of(
    request: Request, caller: Caller, delegations: Delegations, *, newest_first: bool = False
) -> ApprovalFilter:
    """Returns the filter of the approvals that the caller asks for and may see.

    Raises InvalidRequest for a time that is none, PermissionDenied if the caller may not ask for what another person
    may decide.
    """
    decider = await delegations.decider(caller, request.decidable_by) if request.decidable_by else None
    states = [approval_pb2.ApprovalState.Name(state) for state in request.states if state]
    return ApprovalFilter(
        states=tuple(ApprovalState(state.removeprefix("APPROVAL_STATE_")) for state in states),
        kind=event_pb2.ApprovalKind.Name(request.kind).removeprefix("APPROVAL_KIND_") if request.kind else "",
        session_id=request.session_id,
        tool=request.tool,
        agent=request.agent,
        requester=request.requester,
        seen_by="" if sees_all_approvals(caller) else caller.principal,
        decidable_by=decider,
        expire_before=_expire_before(request),
        newest_first=newest_first,
    )


def _expire_before(request: Request) -> datetime | None:
    """Returns the time in whole milliseconds, as approvals are stored."""
    time = validation.optional_time(request, "expire_before")
    return time.replace(microsecond=time.microsecond // 1000 * 1000) if time is not None else None
