"""Approvals: find the tool calls that wait for a decision, and decide."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from turnkeeper_client.calls import call, every
from turnkeeper_client.inbox import ApprovalInbox
from turnkeeper_client.pb.v1 import approval_pb2, event_pb2
from turnkeeper_client.pb.v1.approval_pb2 import Approval, ApprovalDelegation, ApprovalState
from turnkeeper_client.pb.v1.event_pb2 import ApprovalDecision, ApprovalKind, RememberedDecision, RememberScope
from turnkeeper_client.requests import STREAM_TIMEOUT, WAIT_TIMEOUT, Seconds, duration, timestamp
from turnkeeper_client.resume import ResumePolicy
from turnkeeper_client.stubs import Stubs


class Approvals:
    """The approvals of tool calls, across sessions."""

    def __init__(self, stubs: Stubs, *, policy: ResumePolicy) -> None:
        self._stubs = stubs
        self._policy = policy

    def list(
        self,
        *,
        states: Sequence[ApprovalState.ValueType] = (),
        kind: ApprovalKind.ValueType = event_pb2.APPROVAL_KIND_UNSPECIFIED,
        session_id: str = "",
        tool: str = "",
        agent: str = "",
        requester: str = "",
        decidable_by: str = "",
    ) -> AsyncIterator[Approval]:
        """Returns the approvals that match every filter given, oldest first; without `states` the decided ones too."""
        request = approval_pb2.ListApprovalsRequest(
            states=states,
            kind=kind,
            session_id=session_id,
            tool=tool,
            agent=agent,
            requester=requester,
            decidable_by=decidable_by,
        )
        return every(self._stubs.approvals.ListApprovals, request, lambda page: page.approvals)

    async def count(
        self,
        *,
        states: Sequence[ApprovalState.ValueType] = (),
        kind: ApprovalKind.ValueType = event_pb2.APPROVAL_KIND_UNSPECIFIED,
        session_id: str = "",
        tool: str = "",
        agent: str = "",
        requester: str = "",
        decidable_by: str = "",
    ) -> int:
        """Returns how many approvals `list` would return; 10,000 if there are more."""
        request = approval_pb2.CountApprovalsRequest(
            states=states,
            kind=kind,
            session_id=session_id,
            tool=tool,
            agent=agent,
            requester=requester,
            decidable_by=decidable_by,
        )
        return (await call(self._stubs.approvals.CountApprovals, request)).count

    def inbox(
        self,
        *,
        states: Sequence[ApprovalState.ValueType] = (),
        kind: ApprovalKind.ValueType = event_pb2.APPROVAL_KIND_UNSPECIFIED,
        session_id: str = "",
        tool: str = "",
        agent: str = "",
        requester: str = "",
        decidable_by: str = "",
    ) -> ApprovalInbox:
        """Returns a stream of the approvals that match every filter given, and of what becomes of them.

        Without `states` it has those that wait for a decision, with `decidable_by="@me"` those that wait for yours. It
        goes on after a broken connection by itself.
        """
        request = approval_pb2.WatchApprovalsRequest(
            states=states,
            kind=kind,
            session_id=session_id,
            tool=tool,
            agent=agent,
            requester=requester,
            decidable_by=decidable_by,
        )
        return ApprovalInbox(
            self._stubs,
            lambda: self._stubs.approvals.WatchApprovals(request, timeout=STREAM_TIMEOUT),
            policy=self._policy,
        )

    async def get(self, approval_id: str) -> Approval:
        """Returns one approval as it is now."""
        request = approval_pb2.GetApprovalRequest(approval_id=approval_id)
        return (await call(self._stubs.approvals.GetApproval, request)).approval

    async def wait(self, approval_id: str, *, wait: Seconds | None = None) -> Approval:
        """Waits until an approval is no longer pending, or for `wait` (default 60 s, at most 120 s), and returns it."""
        request = approval_pb2.WaitApprovalRequest(approval_id=approval_id, wait=duration(wait))
        return (await call(self._stubs.approvals.WaitApproval, request, timeout=WAIT_TIMEOUT)).approval

    async def approve(
        self,
        approval: Approval,
        *,
        reason: str = "",
        remember: RememberScope.ValueType = event_pb2.REMEMBER_SCOPE_UNSPECIFIED,
        remember_for: Seconds | None = None,
        remember_uses: int = 0,
    ) -> Approval:
        """Approves the call with exactly the arguments that `approval` shows.

        With `remember` the decision counts for later calls of the session, too: for `remember_uses` of them (0: 10),
        during the time `remember_for`, at most 24 h.
        """
        return await self.decide(
            approval.approval_id,
            decision=event_pb2.APPROVAL_DECISION_APPROVE,
            arguments_hash=approval.arguments_hash,
            reason=reason,
            remember=remember,
            remember_for=remember_for,
            remember_uses=remember_uses,
        )

    async def approve_edited(self, approval: Approval, arguments_json: str, *, reason: str = "") -> Approval:
        """Approves the call with these arguments instead (JSON text). Returns the approval of the next round."""
        return await self.decide(
            approval.approval_id,
            decision=event_pb2.APPROVAL_DECISION_APPROVE,
            arguments_hash=approval.arguments_hash,
            reason=reason,
            edited_arguments_json=arguments_json,
        )

    async def reject(self, approval: Approval, *, reason: str = "") -> Approval:
        """Rejects the call. The model receives `reason` as the call's result."""
        return await self.decide(
            approval.approval_id,
            decision=event_pb2.APPROVAL_DECISION_REJECT,
            arguments_hash=approval.arguments_hash,
            reason=reason,
        )

    async def retry(self, approval: Approval, *, reason: str = "") -> Approval:
        """Starts the call again under the same idempotency key. For kind OUTCOME, where the call had no effect or may
        run twice.
        """
        return await self.decide(
            approval.approval_id,
            decision=event_pb2.APPROVAL_DECISION_RETRY,
            arguments_hash=approval.arguments_hash,
            reason=reason,
        )

    async def mark_done(self, approval: Approval, *, result_json: str = "", reason: str = "") -> Approval:
        """Records that the call was done. For kind OUTCOME; `result_json` (JSON text) is what the tool would have
        returned. Without it, `approval.late_result_json` counts.
        """
        return await self.decide(
            approval.approval_id,
            decision=event_pb2.APPROVAL_DECISION_MARK_DONE,
            arguments_hash=approval.arguments_hash,
            reason=reason,
            result_json=result_json,
        )

    async def give_up(self, approval: Approval, *, reason: str = "") -> Approval:
        """Leaves the outcome unknown. For kind OUTCOME; the model receives that, and `reason`, as the call's result."""
        return await self.decide(
            approval.approval_id,
            decision=event_pb2.APPROVAL_DECISION_GIVE_UP,
            arguments_hash=approval.arguments_hash,
            reason=reason,
        )

    async def delegate(self, principal: str, *, until: datetime) -> ApprovalDelegation:
        """Lends your authority to decide to another approver, until a time with a time zone: at most 30 days from now.

        Raises ValueError for a time without a zone.
        """
        request = approval_pb2.DelegateApprovalsRequest(principal=principal, until=timestamp(until, "until"))
        return (await call(self._stubs.approvals.DelegateApprovals, request)).delegation

    def delegations(self, principal: str = "") -> AsyncIterator[ApprovalDelegation]:
        """Returns the delegations that you have given and received; an operator's or auditor's: those of the tenant.

        `principal` selects those that concern one of them.
        """
        request = approval_pb2.ListApprovalDelegationsRequest(principal=principal)
        return every(self._stubs.approvals.ListApprovalDelegations, request, lambda page: page.delegations)

    async def revoke_delegation(self, principal: str, *, person: str = "") -> bool:
        """Ends your delegation to a principal; an operator may end that of another person. False if there was none."""
        request = approval_pb2.RevokeApprovalDelegationRequest(principal=principal, person=person)
        return (await call(self._stubs.approvals.RevokeApprovalDelegation, request)).revoked

    async def remembered(self, session_id: str) -> Sequence[RememberedDecision]:
        """Returns the decisions that the session remembers and that still approve calls, newest first."""
        request = approval_pb2.ListRememberedDecisionsRequest(session_id=session_id)
        return (await call(self._stubs.approvals.ListRememberedDecisions, request)).decisions

    async def revoke_remembered(self, approval_id: str) -> None:
        """Revokes the remembered decision on this approval: it approves no more calls. Repeating it changes nothing."""
        request = approval_pb2.RevokeRememberedDecisionRequest(approval_id=approval_id)
        await call(self._stubs.approvals.RevokeRememberedDecision, request)

    async def extend(self, approval: Approval, *, ttl: Seconds) -> Approval:
        """Gives so much time to decide in all, from the request on: at most `approval.longest_ttl`."""
        request = approval_pb2.ExtendApprovalRequest(approval_id=approval.approval_id, ttl=duration(ttl, "ttl"))
        return (await call(self._stubs.approvals.ExtendApproval, request)).approval

    async def decide_all(
        self, decisions: Sequence[approval_pb2.DecideApprovalRequest]
    ) -> Sequence[approval_pb2.BatchDecideApprovalsResult]:
        """Decides up to 100 approvals, each by itself. Returns a result for each, in their order: `approval`, or
        `error` with what helps.
        """
        request = approval_pb2.BatchDecideApprovalsRequest(decisions=decisions)
        return (await call(self._stubs.approvals.BatchDecideApprovals, request, timeout=WAIT_TIMEOUT)).results

    async def decide(
        self,
        approval_id: str,
        *,
        decision: ApprovalDecision.ValueType,
        arguments_hash: str,
        reason: str = "",
        result_json: str = "",
        edited_arguments_json: str = "",
        remember: RememberScope.ValueType = event_pb2.REMEMBER_SCOPE_UNSPECIFIED,
        remember_for: Seconds | None = None,
        remember_uses: int = 0,
    ) -> Approval:
        """Votes on what has that hash. Repeating the same vote changes nothing.

        Returns the approval: PENDING if `needed` more persons must approve.
        """
        request = approval_pb2.DecideApprovalRequest(
            approval_id=approval_id,
            decision=decision,
            arguments_hash=arguments_hash,
            reason=reason,
            result_json=result_json,
            edited_arguments_json=edited_arguments_json,
            remember=remember,
            remember_for=duration(remember_for),
            remember_uses=remember_uses,
        )
        return (await call(self._stubs.approvals.DecideApproval, request)).approval
