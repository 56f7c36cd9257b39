"""ApprovalService: decode, one verb, encode."""

from turnkeeper.domain.approval import Answer, ApprovalDecision, ApprovalState
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.approvals import Approvals
from turnkeeper.pb.v1 import approval_pb2, approval_pb2_grpc, event_pb2
from turnkeeper.rpc import codec, cursor
from turnkeeper.rpc import page_tokens as pages
from turnkeeper.rpc import validation as rules
from turnkeeper.rpc.deadlines import DEFAULT_WAIT, within
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.interceptor import Context
from turnkeeper.rpc.json_text import is_json
from turnkeeper.rpc.views import approval_view
from turnkeeper.store.contract import ApprovalStore
from turnkeeper.store.filters import ApprovalFilter
from turnkeeper.tools.toolbox import RESULT_BYTES


class ApprovalService(approval_pb2_grpc.ApprovalServiceServicer):
    """What an approver does."""

    def __init__(self, approvals: Approvals, store: ApprovalStore, *, pages: pages.PageTokens) -> None:
        self._approvals = approvals
        self._store = store
        self._pages = pages

    async def GetApproval(
        self, request: approval_pb2.GetApprovalRequest, context: Context
    ) -> approval_pb2.GetApprovalResponse:
        approval = await self._approvals.get(caller_of(context).tenant, request.approval_id)
        return approval_pb2.GetApprovalResponse(approval=approval_view(approval))

    async def ListApprovals(
        self, request: approval_pb2.ListApprovalsRequest, context: Context
    ) -> approval_pb2.ListApprovalsResponse:
        caller = caller_of(context)
        size = self._pages.size(request.page_size)
        kind = event_pb2.ApprovalKind.Name(request.kind).removeprefix("APPROVAL_KIND_") if request.kind else ""
        states = [approval_pb2.ApprovalState.Name(state) for state in request.states if state]
        where = ApprovalFilter(
            states=tuple(ApprovalState(state.removeprefix("APPROVAL_STATE_")) for state in states),
            kind=kind,
            session_id=request.session_id,
            tool=request.tool,
        )
        found = await self._store.approvals(
            caller.tenant,
            where,
            limit=size + 1,
            after=pages.by_time(self._pages.after(request, tenant=caller.tenant)),
        )
        page, token = self._pages.split(
            found,
            request,
            tenant=caller.tenant,
            size=size,
            place=lambda approval: pages.of_time(approval.create_time, approval.id),
            view=approval_view,
        )
        return approval_pb2.ListApprovalsResponse(approvals=page, next_page_token=token)

    async def WaitApproval(
        self, request: approval_pb2.WaitApprovalRequest, context: Context
    ) -> approval_pb2.WaitApprovalResponse:
        asked = codec.seconds(request.wait) if request.HasField("wait") else DEFAULT_WAIT
        approval = await self._approvals.wait(
            caller_of(context).tenant, request.approval_id, seconds=within(asked, context)
        )
        return approval_pb2.WaitApprovalResponse(approval=approval_view(approval))

    async def DecideApproval(
        self, request: approval_pb2.DecideApprovalRequest, context: Context
    ) -> approval_pb2.DecideApprovalResponse:
        caller = caller_of(context)
        approval, sequence = await self._approvals.decide(
            request.approval_id, _answer(request, by=caller.principal), tenant=caller.tenant
        )
        place = StreamPosition(sequence=sequence - 1)
        return approval_pb2.DecideApprovalResponse(
            approval=approval_view(approval),
            sequence=sequence,
            cursor=cursor.encode(place, key=approval.session_key),
        )


def _answer(request: approval_pb2.DecideApprovalRequest, *, by: str) -> Answer:
    """Raises InvalidRequest for a result where none belongs, and for one that the model could not be told."""
    decision = ApprovalDecision(event_pb2.ApprovalDecision.Name(request.decision).removeprefix("APPROVAL_DECISION_"))
    problems = {"result_json": _result_problem(decision, request.result_json)}
    if request.edited_arguments_json and decision is not ApprovalDecision.APPROVE:
        problems["edited_arguments_json"] = "belongs to APPROVE alone"
    if found := {field: problem for field, problem in problems.items() if problem}:
        rules.refuse(found)
    return Answer(
        decision=decision,
        by=by,
        arguments_hash=request.arguments_hash,
        reason=request.reason,
        result_json=request.result_json,
        edited_arguments_json=request.edited_arguments_json,
    )


def _result_problem(decision: ApprovalDecision, result_json: str) -> str:
    if decision is not ApprovalDecision.MARK_DONE:
        return "belongs to MARK_DONE alone" if result_json else ""
    if not result_json:
        return "is required with MARK_DONE"
    size = len(result_json.encode())
    if size > RESULT_BYTES:
        return f"has {size} bytes; at most {RESULT_BYTES} are allowed"
    return "" if is_json(result_json) else "is not JSON"
