"""The RPCs about remembered decisions: list those of a session, revoke one."""

from datetime import timedelta

from turnkeeper.domain.remembered import MOST_USES, RememberRequest, RememberScope
from turnkeeper.engine.remembered import RememberedDecisions
from turnkeeper.errors import SessionNotFound
from turnkeeper.pb.v1 import approval_pb2, event_pb2
from turnkeeper.rpc import codec, cursor
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.origins import origin_of
from turnkeeper.rpc.visible import VisibleApprovals, sees_all_approvals


class RememberedMethods:
    """The methods of ApprovalService about remembered decisions, for those who see the session's approvals."""

    _remembered: RememberedDecisions
    _visible: VisibleApprovals

    async def ListRememberedDecisions(
        self, request: approval_pb2.ListRememberedDecisionsRequest, context: Context
    ) -> approval_pb2.ListRememberedDecisionsResponse:
        caller = caller_of(context)
        session, decisions = await self._remembered.active(caller.session_key(request.session_id))
        if not sees_all_approvals(caller) and not caller.owns(session.owner):
            raise SessionNotFound(session_id=request.session_id)
        response = approval_pb2.ListRememberedDecisionsResponse()
        for decision in decisions:
            codec.fill(response.decisions.add(), decision)
        return response

    async def RevokeRememberedDecision(
        self, request: approval_pb2.RevokeRememberedDecisionRequest, context: Context
    ) -> approval_pb2.RevokeRememberedDecisionResponse:
        caller = caller_of(context)
        approval = await self._visible.get(caller, request.approval_id)
        sequence, last = await self._remembered.revoke(approval, by=caller.principal, origin=origin_of(context))
        return approval_pb2.RevokeRememberedDecisionResponse(
            sequence=sequence, cursor=cursor.before(sequence or last + 1, key=approval.session_key)
        )


def problems_of(request: approval_pb2.DecideApprovalRequest) -> dict[str, str]:
    """Returns what is wrong with what a decision asks to remember, by the field."""
    time, uses = codec.seconds(request.remember_for), request.remember_uses
    if not request.remember:
        fields = {"remember_for": bool(time), "remember_uses": bool(uses)}
        return {field: "belongs to remember" for field, is_set in fields.items() if is_set}
    problems = {} if time > 0 else {"remember_for": "is required with remember, and more than 0 s"}
    return problems | ({"remember_uses": f"is at most {MOST_USES}"} if uses > MOST_USES else {})


def wish_of(request: approval_pb2.DecideApprovalRequest) -> RememberRequest | None:
    """Returns what a decision asks to remember; None for nothing."""
    if not request.remember:
        return None
    scope = event_pb2.RememberScope.Name(request.remember).removeprefix("REMEMBER_SCOPE_")
    return RememberRequest(
        scope=RememberScope(scope),
        time=timedelta(seconds=codec.seconds(request.remember_for)),
        uses=request.remember_uses or MOST_USES,
    )
