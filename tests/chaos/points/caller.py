"""A caller by the client contract: it repeats the same call, with the same id, on the next server."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from tests.harness import Stubs, text_parts
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, session_pb2

T = TypeVar("T")
AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)
CALL = 3.0
"""Seconds for a call to a server that may be frozen."""
PATIENCE = 45.0


class Caller:
    """Calls the servers in order, and then the last one."""

    def __init__(self, *servers: Stubs) -> None:
        self._servers: Sequence[Stubs] = servers

    async def send(self, session_id: str, text: str, *, request_id: str) -> str:
        """Sends a message. Returns the accepted turn's id: an acknowledgement."""
        request = chat_pb2.SendMessageRequest(
            session_id=session_id, request_id=request_id, content=text_parts(text), wait=Duration()
        )
        response = await self._again(lambda stubs: stubs.chat.SendMessage(request, timeout=CALL))
        return str(response.turn.turn_id)

    async def decide(
        self, approval: approval_pb2.Approval, decision: event_pb2.ApprovalDecision.ValueType, *, result: str = ""
    ) -> approval_pb2.Approval:
        """Decides an approval. Returns it decided: an acknowledgement."""
        request = approval_pb2.DecideApprovalRequest(
            approval_id=approval.approval_id,
            decision=decision,
            arguments_hash=approval.arguments_hash,
            result_json=result,
        )
        response = await self._again(lambda stubs: stubs.approvals.DecideApproval(request, timeout=CALL))
        decided: approval_pb2.Approval = response.approval
        return decided

    async def turn(self, session_id: str, turn_id: str, *, wait: int = 0) -> chat_pb2.Turn:
        """Returns the turn as it is after at most `wait` seconds."""
        request = chat_pb2.GetTurnRequest(session_id=session_id, turn_id=turn_id, wait=Duration(seconds=wait))
        response = await self._again(lambda stubs: stubs.chat.GetTurn(request, timeout=CALL + wait))
        turn: chat_pb2.Turn = response.turn
        return turn

    async def pending_approval(self, session_id: str) -> approval_pb2.Approval | None:
        """Returns the session's oldest pending approval, or None."""
        request = approval_pb2.ListApprovalsRequest(
            session_id=session_id, states=[approval_pb2.APPROVAL_STATE_PENDING], page_size=1
        )
        response = await self._again(lambda stubs: stubs.approvals.ListApprovals(request, timeout=CALL))
        return next(iter(response.approvals), None)

    async def create(self, agent: str, session_id: str) -> None:
        request = session_pb2.CreateSessionRequest(session_id=session_id, agent=agent)
        await self._again(lambda stubs: stubs.sessions.CreateSession(request, timeout=CALL))

    async def _again(self, call: Callable[[Stubs], Awaitable[T]]) -> T | Any:
        servers = itertools.chain(self._servers, itertools.repeat(self._servers[-1]))
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await call(next(servers))
                except aio.AioRpcError as error:
                    if error.code() not in AGAIN:
                        raise
                    await asyncio.sleep(0.1)
