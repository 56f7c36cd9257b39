"""The RPCs about delegations of authority, as a part of ApprovalService."""

from turnkeeper.domain.delegation import Delegation
from turnkeeper.engine.delegations import Delegations
from turnkeeper.errors import PermissionDenied
from turnkeeper.identity.caller import AccessRole
from turnkeeper.pb.v1 import approval_pb2
from turnkeeper.rpc import codec, validation
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.origins import origin_of
from turnkeeper.rpc.page_tokens import PageTokens


class DelegationMethods:
    """Lends, lists and takes back authority to decide approvals."""

    _delegations: Delegations
    _page_tokens: PageTokens

    async def DelegateApprovals(
        self, request: approval_pb2.DelegateApprovalsRequest, context: Context
    ) -> approval_pb2.DelegateApprovalsResponse:
        delegation = await self._delegations.delegate(
            caller_of(context),
            request.principal,
            until=validation.time(request, "until"),
            origin=origin_of(context),
        )
        return approval_pb2.DelegateApprovalsResponse(delegation=_view(delegation))

    async def ListApprovalDelegations(
        self, request: approval_pb2.ListApprovalDelegationsRequest, context: Context
    ) -> approval_pb2.ListApprovalDelegationsResponse:
        caller = caller_of(context)
        size = self._page_tokens.size(request.page_size)
        start = self._page_tokens.after(request, caller=caller)
        delegations = await self._delegations.listed(
            caller.tenant,
            concerning=request.principal if caller.sees_tenant else caller.principal,
            limit=size + 1,
            after=(str(start[0]), str(start[1])) if start else None,
        )
        views, token = await self._page_tokens.page(
            delegations,
            request,
            caller=caller,
            size=size,
            key_of=lambda delegation: (delegation.person, delegation.delegate),
            view=_view,
        )
        return approval_pb2.ListApprovalDelegationsResponse(delegations=views, next_page_token=token)

    async def RevokeApprovalDelegation(
        self, request: approval_pb2.RevokeApprovalDelegationRequest, context: Context
    ) -> approval_pb2.RevokeApprovalDelegationResponse:
        caller = caller_of(context)
        person = request.person or caller.principal
        if person != caller.principal and AccessRole.OPERATOR not in caller.roles:
            raise PermissionDenied("Only the role operator may revoke another person's delegation; leave person empty.")
        revoked = await self._delegations.revoke(caller.tenant, person, request.principal, origin=origin_of(context))
        return approval_pb2.RevokeApprovalDelegationResponse(revoked=revoked)


def _view(delegation: Delegation) -> approval_pb2.ApprovalDelegation:
    return codec.fill(approval_pb2.ApprovalDelegation(), delegation)
