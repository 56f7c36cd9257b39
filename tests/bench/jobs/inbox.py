"""Watchers of approvals: how long after its commit a change arrives at them. An approver who lists what waits."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from pymongo import AsyncMongoClient
from pymongo.write_concern import WriteConcern

from tests.bench.figures import Invalid
from tests.bench.jobs.decisions import AGENT, MESSAGE
from tests.bench.runner import Channels
from turnkeeper.pb.v1 import approval_pb2, approval_pb2_grpc, chat_pb2, chat_pb2_grpc, message_pb2

WATCH = "/turnkeeper.v1.ApprovalService/WatchApprovals"
OTHER = "other"
"""The agent of the watchers that no change concerns."""
PATIENCE = 60.0
PAGE = 50
OPENED_AT_ONCE = 32
"""More at once are more than a replica admits."""


class Inbox:
    """One stream: the time at which each approval arrived."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.caught_up = asyncio.Event()
        self.arrived: dict[str, float] = {}

    async def run(self) -> None:
        async for data in self.call:
            now = time.perf_counter()
            response = approval_pb2.WatchApprovalsResponse.FromString(data)
            if response.caught_up:
                self.caught_up.set()
            for approval in response.approvals:
                self.arrived[approval.approval_id] = now


_open: dict[Inbox, asyncio.Task[None]] = {}


async def open_inboxes(channels: Channels, *, address: str, agents: Mapping[str, int]) -> None:
    """Opens so many streams for each agent, until all have caught up. `end_inboxes` ends them."""
    opened: list[Any] = await channels.to(address)
    for agent, count in agents.items():
        request = approval_pb2.WatchApprovalsRequest(agent=agent).SerializeToString()
        for first in range(0, count, OPENED_AT_ONCE):
            inboxes = [
                Inbox(opened[number % len(opened)].unary_stream(WATCH)(request))
                for number in range(first, min(count, first + OPENED_AT_ONCE))
            ]
            _open.update((inbox, asyncio.create_task(inbox.run())) for inbox in inboxes)
            async with asyncio.timeout(PATIENCE):
                for inbox in inboxes:
                    await _caught_up(inbox)


async def _caught_up(inbox: Inbox) -> None:
    """Waits for the end of the stream's snapshot. Raises Invalid if the stream has ended before."""
    waiting = asyncio.create_task(inbox.caught_up.wait())
    await asyncio.wait((waiting, _open[inbox]), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if _open[inbox].done():
        raise Invalid(f"a watcher's stream ended: {await inbox.call.code()} {await inbox.call.details()}")


async def end_inboxes(_channels: Channels) -> None:
    """Ends the streams."""
    for inbox, task in _open.items():
        inbox.call.cancel()
        task.cancel()
    await asyncio.wait(_open.values())
    _open.clear()


async def wait_once(channels: Channels, *, address: str) -> None:
    """Lets an agent ask once: its approval is the model of those that `change` stores. It waits for an hour."""
    chat = chat_pb2_grpc.ChatServiceStub((await channels.to(address))[0])
    sent = await chat.SendMessage(
        chat_pb2.SendMessageRequest(
            session_id=f"bench-{uuid.uuid4().hex}",
            request_id=uuid.uuid4().hex,
            content=[message_pb2.Part(text=MESSAGE)],
            create_session=chat_pb2.CreateSessionParams(agent=AGENT),
            wait=Duration(seconds=30),
        )
    )
    if not sent.turn.pending:
        raise Invalid(f"the turn waits for no approval: {chat_pb2.TurnState.Name(sent.turn.state)}")


async def change(
    _channels: Channels, *, uri: str, database: str, count: int, apart: float
) -> Mapping[str, Sequence[float]]:
    """Stores `count` approvals, `apart` seconds from each other, and waits until every watcher of the agent has them.

    Returns the `delays`: milliseconds from the beginning of each commit to each arrival.
    """
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        approvals = client[database].get_collection("approvals", write_concern=WriteConcern("majority"))
        model = await approvals.find_one({"agent": AGENT, "state": "PENDING"})
        if model is None:
            raise Invalid("there is no approval to copy")
        concerned = [inbox for inbox in _open if model["id"] in inbox.arrived]
        began: dict[str, float] = {}
        for _ in range(count):
            approval_id = uuid.uuid4().hex
            began[approval_id] = time.perf_counter()
            await approvals.insert_one(copy_of(model, approval_id))
            await asyncio.sleep(apart)
        async with asyncio.timeout(PATIENCE):
            while not all(began.keys() <= inbox.arrived.keys() for inbox in concerned):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await approvals.delete_many({"id": {"$in": list(began)}})
    return {"delays": [1000 * (inbox.arrived[name] - at) for inbox in concerned for name, at in began.items()]}


def copy_of(model: Mapping[str, Any], approval_id: str, **changed: Any) -> dict[str, Any]:
    """Returns an approval like this one, of another call."""
    return {
        **model,
        "_id": {"tenant": model["tenant"], "id": approval_id},
        "id": approval_id,
        "tool_call_id": approval_id,
        "create_time": datetime.now(UTC),
        **changed,
    }


async def list_mine(channels: Channels, *, address: str, token: str, count: int) -> list[float]:
    """Lists what the person of the token may decide: `count` calls, one after the other, by turns the first page and
    the second one. Returns the milliseconds of each.

    Raises Invalid unless each page has PAGE approvals.
    """
    approvals = approval_pb2_grpc.ApprovalServiceStub((await channels.to(address))[0])
    request = approval_pb2.ListApprovalsRequest(decidable_by="@me", page_size=PAGE)
    metadata = (("authorization", f"Bearer {token}"),)
    times = list[float]()
    for number in range(count):
        began = time.perf_counter()
        page = await approvals.ListApprovals(request, metadata=metadata)
        times.append(1000 * (time.perf_counter() - began))
        if len(page.approvals) != PAGE:
            raise Invalid(f"a page has {len(page.approvals)} approvals")
        request.page_token = "" if number % 2 else page.next_page_token
    return times
