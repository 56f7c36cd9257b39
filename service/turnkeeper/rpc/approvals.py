"""ApprovalService: each method decodes the request, calls the engine, and encodes the response."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

from turnkeeper.domain import json_text
from turnkeeper.domain.approval import Answer, ApprovalDecision, ApprovalState
from turnkeeper.engine.approvals import Approvals
from turnkeeper.engine.delegations import Delegations
from turnkeeper.engine.remembered import RememberedDecisions
from turnkeeper.engine.rules.approval_times import Extension
from turnkeeper.engine.streaming.inbox import Inbox
from turnkeeper.errors import ToolValidationError
from turnkeeper.pb.v1 import approval_pb2, approval_pb2_grpc, event_pb2
from turnkeeper.rpc import codec, cursor, remembered, validation, wire
from turnkeeper.rpc.approval_filters import filter_of
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.deadlines import DEFAULT_WAIT, within_deadline
from turnkeeper.rpc.decisions import decide_all
from turnkeeper.rpc.delegations import DelegationMethods
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.items import Items
from turnkeeper.rpc.origins import origin_of
from turnkeeper.rpc.page_tokens import PageTokens, key_of_time, time_of_key
from turnkeeper.rpc.remembered import RememberedMethods
from turnkeeper.rpc.views import for_approver
from turnkeeper.rpc.visible import VisibleApprovals
from turnkeeper.store.contract import ApprovalStore
from turnkeeper.tools.results import RESULT_BYTES
from turnkeeper.tools.toolbox import ARGUMENTS_BYTES

MOST_COUNTED = 10_000
"""Where CountApprovals stops."""


class ApprovalService(DelegationMethods, RememberedMethods, approval_pb2_grpc.ApprovalServiceServicer):
    """The RPCs about approvals: read them, watch them, wait for a decision, vote, delegate."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        approvals: Approvals,
        delegations: Delegations,
        remembered_decisions: RememberedDecisions,
        store: ApprovalStore,
        inbox: Inbox,
        *,
        items: Items,
        page_tokens: PageTokens,
    ) -> None:
        self._approvals = approvals
        self._delegations = delegations
        self._remembered = remembered_decisions
        self._inbox = inbox
        self._items = items
        self._visible = VisibleApprovals(approvals)
        self._store = store
        self._page_tokens = page_tokens

    async def GetApproval(
        self, request: approval_pb2.GetApprovalRequest, context: Context
    ) -> approval_pb2.GetApprovalResponse:
        approval = await self._visible.get(caller_of(context), request.approval_id)
        return approval_pb2.GetApprovalResponse(approval=await for_approver(approval))

    async def ListApprovals(
        self, request: approval_pb2.ListApprovalsRequest, context: Context
    ) -> approval_pb2.ListApprovalsResponse:
        caller = caller_of(context)
        size = self._page_tokens.size(request.page_size)
        newest_first = validation.is_descending(request.order_by, "create_time")
        approval_filter = await filter_of(request, caller, self._delegations, newest_first=newest_first)
        approvals = await self._store.approvals(
            caller.tenant,
            approval_filter,
            limit=size + 1,
            after=time_of_key(self._page_tokens.after(request, caller=caller)),
        )
        shown = {approval.id: await for_approver(approval) for approval in approvals}
        views, token = await self._page_tokens.page(
            approvals,
            request,
            caller=caller,
            size=size,
            key_of=lambda approval: key_of_time(approval.create_time, approval.id),
            view=lambda approval: shown[approval.id],
        )
        return approval_pb2.ListApprovalsResponse(approvals=views, next_page_token=token)

    async def CountApprovals(
        self, request: approval_pb2.CountApprovalsRequest, context: Context
    ) -> approval_pb2.CountApprovalsResponse:
        caller = caller_of(context)
        where = await filter_of(request, caller, self._delegations)
        counted = await self._store.count_approvals(caller.tenant, where, most=MOST_COUNTED + 1)
        return approval_pb2.CountApprovalsResponse(count=min(counted, MOST_COUNTED), more=counted > MOST_COUNTED)

    async def WaitApproval(
        self, request: approval_pb2.WaitApprovalRequest, context: Context
    ) -> approval_pb2.WaitApprovalResponse:
        wait = codec.seconds(request.wait) if request.HasField("wait") else DEFAULT_WAIT
        approval = await self._visible.get(caller_of(context), request.approval_id)
        approval = await self._approvals.wait(approval, seconds=within_deadline(wait, context))
        return approval_pb2.WaitApprovalResponse(approval=await for_approver(approval))

    async def WatchApprovals(
        self, request: approval_pb2.WatchApprovalsRequest, context: Context
    ) -> AsyncIterator[approval_pb2.WatchApprovalsResponse]:
        caller = caller_of(context)
        where = await filter_of(request, caller, self._delegations)
        if not where.states:
            where = replace(where, states=(ApprovalState.PENDING,))
        with self._inbox.watch(caller.tenant, where) as watcher:
            while True:
                batch = await watcher.next()
                flags = {"caught_up": batch.caught_up, "reset": batch.reset}
                data = wire.inbox_response(batch.approvals, batch.gone, **flags)
                del batch
                yield data  # type: ignore[misc]  # bytes pass through
                del data

    async def DecideApproval(
        self, request: approval_pb2.DecideApprovalRequest, context: Context
    ) -> approval_pb2.DecideApprovalResponse:
        caller = caller_of(context)
        answer = Answer(
            decision=_decision(request),
            decider=await self._delegations.decider_of(caller),
            arguments_hash=request.arguments_hash,
            reason=request.reason,
            result_json=request.result_json,
            edited_arguments_json=request.edited_arguments_json,
            remember=remembered.wish_of(request),
            origin=origin_of(context),
        )
        approval, sequence = await self._approvals.decide(request.approval_id, answer, tenant=caller.tenant)
        return approval_pb2.DecideApprovalResponse(
            approval=await for_approver(approval),
            sequence=sequence,
            cursor=cursor.before(sequence, key=approval.session_key),
        )

    async def BatchDecideApprovals(
        self, request: approval_pb2.BatchDecideApprovalsRequest, context: Context
    ) -> approval_pb2.BatchDecideApprovalsResponse:
        return await decide_all(request, context, decide=self.DecideApproval, items=self._items)

    async def ExtendApproval(
        self, request: approval_pb2.ExtendApprovalRequest, context: Context
    ) -> approval_pb2.ExtendApprovalResponse:
        caller = caller_of(context)
        extension = Extension(
            ttl=_ttl(request), decider=await self._delegations.decider_of(caller), origin=origin_of(context)
        )
        approval = await self._approvals.extend(request.approval_id, extension, tenant=caller.tenant)
        sequence = approval.extension_sequence
        return approval_pb2.ExtendApprovalResponse(
            approval=await for_approver(approval),
            sequence=sequence,
            cursor=cursor.before(sequence, key=approval.session_key) if sequence else "",
        )


def _ttl(request: approval_pb2.ExtendApprovalRequest) -> timedelta:
    """Returns the time that the request asks for. Raises InvalidRequest for a duration that is none."""
    try:
        return request.ttl.ToTimedelta()
    except (OverflowError, ValueError):
        validation.refuse({"ttl": "is not a duration"})


def _decision(request: approval_pb2.DecideApprovalRequest) -> ApprovalDecision:
    """Returns what the approver decides. Raises InvalidRequest for fields that do not fit the decision."""
    decision = ApprovalDecision(event_pb2.ApprovalDecision.Name(request.decision).removeprefix("APPROVAL_DECISION_"))
    problems = {"result_json": _result_problem(decision, request.result_json)}
    problems |= remembered.problems_of(request)
    if request.edited_arguments_json and decision is not ApprovalDecision.APPROVE:
        problems["edited_arguments_json"] = "belongs to APPROVE alone"
    if wrong := {field: problem for field, problem in problems.items() if problem}:
        validation.refuse(wrong)
    if (size := len(request.edited_arguments_json.encode())) > ARGUMENTS_BYTES:
        problem = f"has {size} bytes; at most {ARGUMENTS_BYTES} are allowed"
        raise ToolValidationError(
            f"The edited arguments are not valid: edited_arguments_json {problem}.",
            fields={"edited_arguments_json": problem},
        )
    return decision


def _result_problem(decision: ApprovalDecision, result_json: str) -> str:
    """Returns what is wrong with the result of this decision, or an empty text."""
    if decision is not ApprovalDecision.MARK_DONE:
        return "belongs to MARK_DONE alone" if result_json else ""
    if not result_json:
        return ""  # the late result counts; the rules refuse it if there is none
    size = len(result_json.encode())
    if size > RESULT_BYTES:
        return f"has {size} bytes; at most {RESULT_BYTES} are allowed"
    return json_text.problem_of(result_json)
