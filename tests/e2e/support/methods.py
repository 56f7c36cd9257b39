"""Every RPC that works, each with a request; raw bytes in, raw bytes out."""

from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from tests import harness
from tests.status_details import details_of
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, audit_pb2, chat_pb2, event_pb2, operator_pb2, session_pb2

TEXT = harness.text_parts("hello")
MISSING = "missing"


@dataclass(frozen=True)
class Method:
    """One RPC with a request that would be valid, if its session, turn or approval existed."""

    service: str
    name: str
    request: Message
    streams: bool = False
    lists: bool = False
    endless: bool = False
    """The stream of an answer does not end by itself: its first response is enough."""

    def __str__(self) -> str:
        return self.name

    async def call(self, stubs: harness.Stubs, data: bytes) -> list[bytes]:
        """Sends raw bytes. Returns the raw answers."""
        path = f"/turnkeeper.v1.{self.service}Service/{self.name}"
        if self.streams:
            stream: aio.UnaryStreamMultiCallable[bytes, bytes] = stubs.channel.unary_stream(path)
            call = stream(data)
            responses = []
            async for response in call:
                responses.append(response)
                if self.endless:
                    call.cancel()
                    break
            return responses
        unary: aio.UnaryUnaryMultiCallable[bytes, bytes] = stubs.channel.unary_unary(path)
        return [await unary(data)]

    async def reason(self, stubs: harness.Stubs, data: bytes) -> str:
        """Returns OK, or the reason of the error after checking its details."""
        try:
            await self.call(stubs, data)
        except aio.AioRpcError as error:
            return details_of(error).reason
        return "OK"


METHODS = (
    Method("Session", "CreateSession", session_pb2.CreateSessionRequest(request_id="r", agent="talker", title="é")),
    Method("Session", "GetSession", session_pb2.GetSessionRequest(session_id=MISSING)),
    Method("Session", "ListSessions", session_pb2.ListSessionsRequest(agent="talker", page_size=1), lists=True),
    Method(
        "Session",
        "UpdateSession",
        session_pb2.UpdateSessionRequest(
            session=session_pb2.Session(session_id=MISSING, title="é"), update_mask=FieldMask(paths=["title"])
        ),
    ),
    Method("Session", "SuspendSession", session_pb2.SuspendSessionRequest(session_id=MISSING)),
    Method("Session", "ResumeSession", session_pb2.ResumeSessionRequest(session_id=MISSING)),
    Method("Session", "DeleteSession", session_pb2.DeleteSessionRequest(session_id=MISSING, etag="é")),
    Method("Session", "UndeleteSession", session_pb2.UndeleteSessionRequest(session_id=MISSING)),
    Method("Session", "EndSession", session_pb2.EndSessionRequest(session_id=MISSING, reason="é")),
    Method("Session", "WatchEvents", session_pb2.WatchEventsRequest(session_id=MISSING, types=["turn_failed"]), True),
    Method("Session", "ListEvents", session_pb2.ListEventsRequest(session_id=MISSING, after_sequence=1)),
    Method("Session", "ListMessages", session_pb2.ListMessagesRequest(session_id=MISSING, page_size=3)),
    Method("Session", "ListCheckpoints", session_pb2.ListCheckpointsRequest(session_id=MISSING, page_size=3)),
    Method("Session", "ForkSession", session_pb2.ForkSessionRequest(session_id=MISSING, request_id="r", sequence=1)),
    Method("Session", "RestoreCheckpoint", session_pb2.RestoreCheckpointRequest(session_id=MISSING, sequence=1)),
    Method("Session", "ExportSession", session_pb2.ExportSessionRequest(session_id=MISSING), True),
    Method("Chat", "SendMessage", chat_pb2.SendMessageRequest(session_id=MISSING, request_id="r", content=TEXT)),
    Method(
        "Chat", "StreamMessage", chat_pb2.StreamMessageRequest(session_id=MISSING, request_id="r", content=TEXT), True
    ),
    Method("Chat", "GetTurn", chat_pb2.GetTurnRequest(session_id=MISSING, turn_id="t", wait=Duration(nanos=5))),
    Method("Chat", "ListTurns", chat_pb2.ListTurnsRequest(session_id=MISSING, page_size=7)),
    Method("Chat", "CancelTurn", chat_pb2.CancelTurnRequest(session_id=MISSING, turn_id="t")),
    Method("Chat", "RetryTurn", chat_pb2.RetryTurnRequest(session_id=MISSING, turn_id="t", request_id="r")),
    Method(
        "Chat",
        "SubmitToolResult",
        chat_pb2.SubmitToolResultRequest(session_id=MISSING, tool_call_id="c", result_json='"é"'),
    ),
    Method("Approval", "GetApproval", approval_pb2.GetApprovalRequest(approval_id=MISSING)),
    Method("Approval", "ListApprovals", approval_pb2.ListApprovalsRequest(tool="é", page_size=1), lists=True),
    Method("Approval", "WaitApproval", approval_pb2.WaitApprovalRequest(approval_id=MISSING, wait=Duration(nanos=5))),
    Method(
        "Approval",
        "DecideApproval",
        approval_pb2.DecideApprovalRequest(
            approval_id=MISSING, decision=event_pb2.APPROVAL_DECISION_APPROVE, arguments_hash="0", reason="é"
        ),
    ),
    Method(
        "Approval",
        "WatchApprovals",
        approval_pb2.WatchApprovalsRequest(tool="é"),
        streams=True,
        lists=True,
        endless=True,
    ),
    Method("Approval", "CountApprovals", approval_pb2.CountApprovalsRequest(tool="é"), lists=True),
    Method(
        "Approval",
        "ExtendApproval",
        approval_pb2.ExtendApprovalRequest(approval_id=MISSING, ttl=Duration(seconds=5)),
    ),
    Method(
        "Approval",
        "BatchDecideApprovals",
        approval_pb2.BatchDecideApprovalsRequest(
            decisions=[
                approval_pb2.DecideApprovalRequest(
                    approval_id=MISSING, decision=event_pb2.APPROVAL_DECISION_APPROVE, arguments_hash="0"
                )
            ]
        ),
    ),
    Method(
        "Approval",
        "DelegateApprovals",
        approval_pb2.DelegateApprovalsRequest(principal=MISSING, until=Timestamp(seconds=1)),
    ),
    Method("Approval", "ListApprovalDelegations", approval_pb2.ListApprovalDelegationsRequest(), lists=True),
    Method("Approval", "RevokeApprovalDelegation", approval_pb2.RevokeApprovalDelegationRequest(principal=MISSING)),
    Method(
        "Approval",
        "ListRememberedDecisions",
        approval_pb2.ListRememberedDecisionsRequest(session_id=MISSING),
    ),
    Method(
        "Approval",
        "RevokeRememberedDecision",
        approval_pb2.RevokeRememberedDecisionRequest(approval_id=MISSING),
    ),
    Method("Agent", "GetAgent", agent_pb2.GetAgentRequest(name="talker")),
    Method("Agent", "EvaluatePolicy", agent_pb2.EvaluatePolicyRequest(agent="talker", tool="é")),
    Method("Agent", "ListAgents", agent_pb2.ListAgentsRequest(page_size=1), lists=True),
    Method("Operator", "ListActiveTurns", operator_pb2.ListActiveTurnsRequest(tenant="é", page_size=1), lists=True),
    Method(
        "Operator",
        "CancelTurns",
        operator_pb2.CancelTurnsRequest(filter=operator_pb2.TurnFilter(agent="é"), expected_count=1),
    ),
    Method("Operator", "FreezeAdmission", operator_pb2.FreezeAdmissionRequest(agent="é", reason="é")),
    Method("Operator", "UnfreezeAdmission", operator_pb2.UnfreezeAdmissionRequest(agent="é"), lists=True),
    Method("Operator", "ListFreezes", operator_pb2.ListFreezesRequest(tenant="é"), lists=True),
    Method("Operator", "DenyTool", operator_pb2.DenyToolRequest(pattern="not_there", reason="é")),
    Method("Operator", "AllowTool", operator_pb2.AllowToolRequest(pattern="not_there")),
    Method("Operator", "ListDeniedTools", operator_pb2.ListDeniedToolsRequest(), lists=True),
    Method("Operator", "ListReplicas", operator_pb2.ListReplicasRequest(), lists=True),
    Method("Audit", "ExportAudit", audit_pb2.ExportAuditRequest(tenant="é"), streams=True, lists=True),
)
