"""WatchApprovals: the inbox of approvers, over two replicas."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import pytest

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from tests.e2e.support.faults import refused_command
from tests.harness import Stubs
from tests.status_details import refused
from turnkeeper.pb.v1 import approval_pb2, error_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON = 15
SETTINGS = {"poll": timedelta(seconds=60)}
SCRIPT = """
[[reply]]
match = "^ask"
tool_calls = [{ name = "act", arguments = { label = "one" } }]

[[reply]]
text = "Done."
"""
PENDING = approval_pb2.APPROVAL_STATE_PENDING


@dataclass
class Inbox:
    """What a reader of the stream has after each response."""

    stream: Any
    approvals: dict[str, approval_pb2.Approval] = field(default_factory=dict)
    caught_up: int = 0
    resets: int = 0
    heartbeats: int = 0

    async def read(self) -> approval_pb2.WatchApprovalsResponse:
        response: Any = await self.stream.read()
        assert isinstance(response, approval_pb2.WatchApprovalsResponse), "the stream has ended"
        if response.reset:
            self.approvals.clear()
            self.resets += 1
        assert all(gone.approval_id in self.approvals for gone in response.gone)
        self.approvals |= {approval.approval_id: approval for approval in (*response.approvals, *response.gone)}
        self.caught_up += response.caught_up
        self.heartbeats += response == approval_pb2.WatchApprovalsResponse()
        return response

    def is_pending(self, approval: approval_pb2.Approval) -> bool:
        """Returns True if the reader takes the approval for one that waits."""
        shown = self.approvals.get(approval.approval_id)
        return shown is not None and shown.state == PENDING

    async def read_on(self) -> None:
        """Reads until the stream ends."""
        while True:
            await self.read()

    async def until(self, approval_id: str, state: approval_pb2.ApprovalState.ValueType) -> approval_pb2.Approval:
        """Reads until this approval has come in this state."""
        async with asyncio.timeout(SOON):
            while approval_id not in self.approvals or self.approvals[approval_id].state != state:
                await self.read()
        return self.approvals[approval_id]


@contextlib.asynccontextmanager
async def inbox(stubs: Stubs, **where: Any) -> AsyncIterator[Inbox]:
    """Opens a stream, reads its snapshot, and cancels it at the end of the block."""
    stream: Any = stubs.approvals.WatchApprovals(approval_pb2.WatchApprovalsRequest(**where))
    opened = Inbox(stream)
    try:
        async with asyncio.timeout(SOON):
            while not opened.caught_up:
                await opened.read()
        yield opened
    finally:
        stream.cancel()


async def request_approval(stubs: Stubs) -> approval_pb2.Approval:
    """Lets an agent ask in a session of its own. Returns the approval."""
    session = await harness.create_test_session(stubs, agent="asker")
    await harness.send_message_to_session(stubs, session, "ask")
    listed = await stubs.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(session_id=session))
    return listed.approvals[0]


async def test_an_approval_comes_at_once_and_once_more_when_it_was_decided_on_another_replica(
    env: Environment,
) -> None:
    before = await request_approval(env.stubs)
    async with env.another() as other, inbox(other) as mine:
        assert mine.approvals[before.approval_id] == before
        for _ in range(3):
            requested = await request_approval(env.stubs)
            assert await mine.until(requested.approval_id, PENDING) == requested
            decided = await harness.decide(env.stubs, requested)
            shown = await mine.until(requested.approval_id, approval_pb2.APPROVAL_STATE_APPROVED)
            assert shown == decided.approval
        await harness.decide(other, before, approve=False)
        await mine.until(before.approval_id, approval_pb2.APPROVAL_STATE_REJECTED)
        assert (mine.caught_up, mine.resets) == (1, 0)


async def test_what_a_replica_does_itself_comes_as_well(env: Environment) -> None:
    async with inbox(env.stubs) as mine:
        requested = await request_approval(env.stubs)
        await mine.until(requested.approval_id, PENDING)
        await env.stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=requested.session_id))
        await mine.until(requested.approval_id, approval_pb2.APPROVAL_STATE_WITHDRAWN)


async def test_a_suspended_session_changes_the_expiry(env: Environment) -> None:
    async with inbox(env.stubs) as mine:
        requested = await request_approval(env.stubs)
        assert (await mine.until(requested.approval_id, PENDING)).HasField("expire_time")
        request = session_pb2.SuspendSessionRequest(session_id=requested.session_id)
        await env.stubs.sessions.SuspendSession(request)
        async with asyncio.timeout(SOON):
            while mine.approvals[requested.approval_id].HasField("expire_time"):
                await mine.read()


async def test_the_filters_hold_for_the_snapshot_and_for_what_comes(env: Environment) -> None:
    one, other = await request_approval(env.stubs), await request_approval(env.stubs)
    late = other.expire_time.ToDatetime() - timedelta(minutes=1)
    async with (
        inbox(env.stubs, session_id=one.session_id) as of_session,
        inbox(env.stubs, agent="clerk") as of_agent,
        inbox(env.stubs, tool="add") as of_tool,
        inbox(env.stubs, requester="unknown") as of_requester,
        inbox(env.stubs, kind="APPROVAL_KIND_OUTCOME") as of_kind,
        inbox(env.stubs, expire_before=late) as expiring,
        inbox(env.stubs, states=["APPROVAL_STATE_REJECTED"], session_id=other.session_id) as rejected,
    ):
        assert list(of_session.approvals) == [one.approval_id]
        await harness.decide(env.stubs, other, approve=False)
        await rejected.until(other.approval_id, approval_pb2.APPROVAL_STATE_REJECTED)
        await harness.decide(env.stubs, one, approve=False)
        await of_session.until(one.approval_id, approval_pb2.APPROVAL_STATE_REJECTED)
        assert list(of_session.approvals) == [one.approval_id]
        for empty in (of_agent, of_tool, of_requester, of_kind, expiring):
            assert not empty.approvals


@pytest.mark.parametrize(
    ("how"),
    [{"closeConnection": True}, {"errorCode": 43}, {"errorCode": 286}],
    ids=["connection closed", "cursor killed", "history lost"],
)
async def test_a_lost_change_stream_begins_anew(env: Environment, how: dict[str, Any]) -> None:
    async with env.another() as other, inbox(other) as mine:
        before = await request_approval(env.stubs)
        await mine.until(before.approval_id, PENDING)
        async with refused_command(env.mongo_uri, "getMore", times=4, **how) as broken:
            await broken.entered(4)
        await harness.decide(env.stubs, before)
        async with asyncio.timeout(SOON):
            while not mine.resets or mine.is_pending(before):
                await mine.read()
        requested = await request_approval(env.stubs)
        await mine.until(requested.approval_id, PENDING)
        assert mine.caught_up == mine.resets + 1


async def test_where_change_streams_are_forbidden_the_snapshot_comes_again_and_again(env: Environment) -> None:
    async with refused_command(env.mongo_uri, "aggregate", errorCode=13), env.another() as other, inbox(other) as mine:
        requested = await request_approval(env.stubs)
        await mine.until(requested.approval_id, PENDING)
        assert mine.resets


async def test_silence_is_broken_by_heartbeats(env: Environment) -> None:
    async with env.another(heartbeat=timedelta(milliseconds=100)) as stubs, inbox(stubs, tool="none") as mine:
        async with asyncio.timeout(SOON):
            while mine.heartbeats < 3:
                await mine.read()


async def test_a_stream_ends_at_its_age_and_at_a_drain_and_the_call_may_be_repeated(env: Environment) -> None:
    async with env.another(rotation=timedelta(milliseconds=250)) as stubs, inbox(stubs) as mine:
        await _ends(mine, grpc.StatusCode.ABORTED, "STREAM_ROTATED")
    async with contextlib.AsyncExitStack() as going:
        chosen: dict[str, Any] = {"agents": AGENTS, "drain_grace": timedelta(milliseconds=300)}
        running = await going.enter_async_context(harness.serving(env.mongo_uri, env.database, env.model, **chosen))
        async with harness.connect(running.address) as stubs, inbox(stubs) as mine, asyncio.TaskGroup() as group:
            group.create_task(_ends(mine, grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING"))
            await going.aclose()


async def _ends(mine: Inbox, status: grpc.StatusCode, reason: str) -> None:
    async with asyncio.timeout(SOON):
        with refused(reason) as refusal:
            await mine.read_on()
    assert refusal.details.status is status
    assert refusal.details.detail.retry == error_pb2.RETRY_ADVICE_RESUME_STREAM
    assert not refusal.details.detail.cursor
