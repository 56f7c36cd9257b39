"""Runs turns whose one tool call a person approves: each is recorded in the audit trail."""

import asyncio
import time
import uuid
from collections import deque
from typing import Any

from google.protobuf.duration_pb2 import Duration

from tests.bench.figures import Invalid
from tests.bench.runner import Channels
from turnkeeper.pb.v1 import (
    approval_pb2,
    approval_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    event_pb2,
    message_pb2,
)

AGENT = "asker"
MESSAGE = "tell ada"
WAIT = Duration(seconds=30)


async def decide_turns(channels: Channels, *, address: str, count: int, concurrency: int) -> dict[str, Any]:
    """Runs turns, `concurrency` at once: a message, a decision, the end. Returns the `seconds` of all.

    Raises Invalid unless each waits for an approval and ends COMPLETED.
    """
    opened = await channels.to(address)
    waiting = deque(range(count))

    async def work() -> None:
        while waiting:
            channel = opened[waiting.popleft() % len(opened)]
            chat, approvals = chat_pb2_grpc.ChatServiceStub(channel), approval_pb2_grpc.ApprovalServiceStub(channel)
            await _decided_turn(chat, approvals)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return {"seconds": time.perf_counter() - began}


async def _decided_turn(chat: Any, approvals: Any) -> None:
    session_id = f"bench-{uuid.uuid4().hex}"
    sent = await chat.SendMessage(
        chat_pb2.SendMessageRequest(
            session_id=session_id,
            request_id=uuid.uuid4().hex,
            content=[message_pb2.Part(text=MESSAGE)],
            create_session=chat_pb2.CreateSessionParams(agent=AGENT),
            wait=WAIT,
        )
    )
    if not sent.turn.pending:
        raise Invalid(f"{session_id}: the turn waits for no approval: {chat_pb2.TurnState.Name(sent.turn.state)}")
    approval_id = sent.turn.pending[0].approval_id
    approval = (await approvals.GetApproval(approval_pb2.GetApprovalRequest(approval_id=approval_id))).approval
    await approvals.DecideApproval(
        approval_pb2.DecideApprovalRequest(
            approval_id=approval_id,
            decision=event_pb2.APPROVAL_DECISION_APPROVE,
            arguments_hash=approval.arguments_hash,
        )
    )
    request = chat_pb2.GetTurnRequest(session_id=session_id, turn_id=sent.turn.turn_id, wait=WAIT)
    turn = (await chat.GetTurn(request)).turn
    if turn.state != chat_pb2.TURN_STATE_COMPLETED:
        raise Invalid(f"{session_id}: the turn ended {chat_pb2.TurnState.Name(turn.state)}")
