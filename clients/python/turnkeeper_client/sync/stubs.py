# Generated from ../stubs.py by `make sync-client`. Do not edit.
"""The generated stubs, together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from turnkeeper_client.pb.v1.agent_pb2_grpc import AgentServiceStub
from turnkeeper_client.pb.v1.approval_pb2_grpc import ApprovalServiceStub
from turnkeeper_client.pb.v1.audit_pb2_grpc import AuditServiceStub
from turnkeeper_client.pb.v1.chat_pb2_grpc import ChatServiceStub
from turnkeeper_client.pb.v1.operator_pb2_grpc import OperatorServiceStub
from turnkeeper_client.pb.v1.session_pb2_grpc import SessionServiceStub
from turnkeeper_client.sync.tokens import Tokens
from turnkeeper_client.sync.wire import Channel

if TYPE_CHECKING:
    from turnkeeper_client.sync.wire import AgentStub, ApprovalStub, AuditStub, ChatStub, OperatorStub, SessionStub


@dataclass(frozen=True, slots=True, kw_only=True)
class Stubs:
    """The generated stubs of every service, over one channel. Their calls raise gRPC's own errors."""

    sessions: "SessionStub"
    chat: "ChatStub"
    approvals: "ApprovalStub"
    agents: "AgentStub"
    audit: "AuditStub"
    operator: "OperatorStub"
    # Of the client, if it has a source of tokens.
    tokens: Tokens | None = None

    @classmethod
    def over(cls, channel: Channel, tokens: Tokens | None = None) -> Self:
        return cls(
            sessions=SessionServiceStub(channel),
            chat=ChatServiceStub(channel),
            approvals=ApprovalServiceStub(channel),
            agents=AgentServiceStub(channel),
            audit=AuditServiceStub(channel),
            operator=OperatorServiceStub(channel),
            tokens=tokens,
        )
