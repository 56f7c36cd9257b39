"""Promises I6 and I7: an approval leaves PENDING once; expired and decided exclude each other.

The database's clock decides, for every caller and server.
"""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc import aio
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import Environment
from tests.status_details import details_of, refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"sweep": timedelta(hours=1)}
"""The module's own server never sweeps: approvals expire there only when a call reads them."""
SCRIPT = r"""
[[reply]]
match = '^do (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""
SWEEPING = {"sweep": timedelta(milliseconds=5)}
LEFT = {"approval_decided", "approval_expired", "approval_withdrawn"}
"""The events with which an approval leaves PENDING."""
STATES = {
    approval_pb2.APPROVAL_STATE_APPROVED: "approval_decided",
    approval_pb2.APPROVAL_STATE_REJECTED: "approval_decided",
    approval_pb2.APPROVAL_STATE_EXPIRED: "approval_expired",
    approval_pb2.APPROVAL_STATE_WITHDRAWN: "approval_withdrawn",
}


async def pending_approval(env: Environment, label: str) -> tuple[chat_pb2.Turn, approval_pb2.Approval]:
    """Sends a message whose turn waits for an approval. Returns both."""
    session = await harness.create_test_session(env.stubs, agent="asker")
    turn = await harness.send_message_to_session(env.stubs, session, f"do {label}")
    return turn, await harness.wait_for_approval(env.stubs, session)


async def expires(env: Environment, approval: approval_pb2.Approval, when: timedelta) -> None:
    """Sets the approval to expire at this time from now, by the database's clock."""
    milliseconds = round(when / timedelta(milliseconds=1))
    async with AsyncMongoClient[dict[str, object]](env.mongo_uri) as client:
        await client[env.database]["approvals"].update_one(
            {"tenant": harness.TENANT, "_id.id": approval.approval_id},
            [{"$set": {"expire_time": {"$add": ["$$NOW", milliseconds]}}}],
        )


async def reason_of(call: Awaitable[Any]) -> str:
    """Returns OK, or the reason of the call's error."""
    try:
        await call
    except aio.AioRpcError as error:
        return details_of(error).reason
    return "OK"


async def check_one_winner(env: Environment, turn: chat_pb2.Turn, approval: approval_pb2.Approval, label: str) -> str:
    """Asserts that approval, log, ledger and effects agree. Returns the approval's state."""
    await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
    events = await harness.all_events(env.stubs, turn.session_id)
    left = [kind for kind in harness.kinds(events) if kind in LEFT]
    state = (await harness.get_approval(env.stubs, approval.approval_id)).state
    assert left == [STATES[state]]
    returned = [event.tool_returned for event in events if event.HasField("tool_returned")]
    assert len(returned) == 1
    assert len(env.tool_control.effects(label)) == int(returned[0].started)
    if state != approval_pb2.APPROVAL_STATE_APPROVED:
        assert not returned[0].started
    return approval_pb2.ApprovalState.Name(state)


class TestI6OneWinner:
    async def test_i6_approve_and_reject_at_once(self, env: Environment) -> None:
        async with env.another() as other:
            for number in range(8):
                label = f"both-{number}"
                turn, approval = await pending_approval(env, label)
                outcomes = await asyncio.gather(
                    *(reason_of(harness.decide(stubs, approval, approve=True)) for stubs in (env.stubs, other)),
                    *(reason_of(harness.decide(stubs, approval, approve=False)) for stubs in (other, env.stubs)),
                )
                assert sorted(outcomes) == ["APPROVAL_ALREADY_PROCESSED"] * 2 + ["OK"] * 2
                assert len(set(outcomes[:2])) == 1, "the same decision by the same person is a repeat"
                await check_one_winner(env, turn, approval, label)

    async def test_i6_a_decision_and_a_cancellation_at_once(self, env: Environment) -> None:
        states = set()
        async with env.another() as other:
            for number in range(10):
                label = f"cancel-{number}"
                turn, approval = await pending_approval(env, label)
                cancel = chat_pb2.CancelTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
                calls: list[Awaitable[Any]] = [
                    harness.decide(env.stubs, approval),
                    other.chat.CancelTurn(cancel),
                ]
                outcomes = await asyncio.gather(*(reason_of(call) for call in calls[:: 1 if number % 2 else -1]))
                assert "OK" in outcomes
                states.add(await check_one_winner(env, turn, approval, label))
        assert states <= {"APPROVAL_STATE_APPROVED", "APPROVAL_STATE_WITHDRAWN"}

    async def test_i6_a_decision_and_the_sessions_end_at_once(self, env: Environment) -> None:
        async with env.another() as other:
            for number in range(6):
                label = f"end-{number}"
                turn, approval = await pending_approval(env, label)
                end = session_pb2.EndSessionRequest(session_id=turn.session_id)
                _, ended = await asyncio.gather(
                    reason_of(harness.decide(env.stubs, approval)), reason_of(other.sessions.EndSession(end))
                )
                assert ended == "OK"
                await check_one_winner(env, turn, approval, label)

    async def test_i6_deciders_and_sweepers_at_the_moment_of_expiry(self, env: Environment) -> None:
        """Two sweepers, an approver, a rejecter and the sweepless server's own look meet at the expiry."""
        states = set()
        async with env.another(**SWEEPING) as one, env.another(**SWEEPING) as two:
            for number in range(10):
                label = f"expiry-{number}"
                turn, approval = await pending_approval(env, label)
                await expires(env, approval, timedelta(milliseconds=4 * number - 8))
                outcomes = await asyncio.gather(
                    reason_of(harness.decide(one, approval)),
                    reason_of(harness.decide(two, approval, approve=False)),
                    reason_of(harness.decide(env.stubs, approval)),
                )
                assert set(outcomes) <= {"OK", "APPROVAL_EXPIRED", "APPROVAL_ALREADY_PROCESSED"}
                state = await check_one_winner(env, turn, approval, label)
                assert ("OK" in outcomes) == (state != "APPROVAL_STATE_EXPIRED")
                states.add(state)
        assert "APPROVAL_STATE_EXPIRED" in states


class TestI7ExpiredOrDecided:
    async def test_i7_a_decision_that_meets_a_lapsed_approval_performs_the_expiry(self, env: Environment) -> None:
        turn, approval = await pending_approval(env, "lapsed")
        await expires(env, approval, timedelta(milliseconds=-1))
        with refused("APPROVAL_EXPIRED") as refusal:
            await harness.decide(env.stubs, approval)
        assert refusal.details.status == grpc.StatusCode.FAILED_PRECONDITION
        assert refusal.details.metadata["approval_id"] == approval.approval_id
        events = await harness.all_events(env.stubs, turn.session_id)
        assert "approval_expired" in harness.kinds(events)
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED, "the expiry re-queued the turn; there is no sweeper"
        assert await check_one_winner(env, turn, approval, "lapsed") == "APPROVAL_STATE_EXPIRED"

    @pytest.mark.parametrize("approve", [True, False])
    async def test_i7_what_has_expired_cannot_be_decided_any_more(self, env: Environment, approve: bool) -> None:
        label = f"gone-{approve}"
        turn, approval = await pending_approval(env, label)
        await expires(env, approval, timedelta(milliseconds=-1))
        for _ in range(2):
            with refused("APPROVAL_EXPIRED"):
                await harness.decide(env.stubs, approval, approve=approve)
        assert await check_one_winner(env, turn, approval, label) == "APPROVAL_STATE_EXPIRED"

    async def test_i7_what_was_decided_does_not_expire(self, env: Environment) -> None:
        turn, approval = await pending_approval(env, "decided")
        await harness.decide(env.stubs, approval)
        await expires(env, approval, timedelta(milliseconds=-1))
        async with env.another(**SWEEPING) as other:
            await harness.wait_for_turn(other, turn.session_id, turn.turn_id)
            again = await harness.decide(other, approval)
        assert again.approval.state == approval_pb2.APPROVAL_STATE_APPROVED
        assert await check_one_winner(env, turn, approval, "decided") == "APPROVAL_STATE_APPROVED"

    async def test_i7_other_arguments_are_no_reason_to_decide_after_the_expiry(self, env: Environment) -> None:
        turn, approval = await pending_approval(env, "mismatched")
        await expires(env, approval, timedelta(milliseconds=-1))
        approval.arguments_hash = "0" * 64
        with refused("APPROVAL_EXPIRED"):
            await harness.decide(env.stubs, approval)
        assert await check_one_winner(env, turn, approval, "mismatched") == "APPROVAL_STATE_EXPIRED"

    async def test_i7_the_time_that_counts_is_the_databases(self, env: Environment) -> None:
        """The stored time and the database's clock decide, not the time that the caller was shown."""
        _, approval = await pending_approval(env, "extended")
        await expires(env, approval, timedelta(hours=-1))
        await expires(env, approval, timedelta(seconds=30))
        decided = await harness.decide(env.stubs, approval, approve=False)
        assert decided.approval.state == approval_pb2.APPROVAL_STATE_REJECTED

    async def test_i7_a_sweeper_expires_undecided_approvals(self, env: Environment) -> None:
        turn, approval = await pending_approval(env, "swept")
        await expires(env, approval, timedelta(milliseconds=50))
        async with env.another(**SWEEPING) as other:
            request = approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id)
            waited = await other.approvals.WaitApproval(request)
            assert waited.approval.state == approval_pb2.APPROVAL_STATE_EXPIRED
            await harness.wait_for_turn(other, turn.session_id, turn.turn_id)
        events = await harness.all_events(env.stubs, turn.session_id)
        returned = next(event.tool_returned for event in events if event.HasField("tool_returned"))
        assert returned.outcome == event_pb2.TOOL_OUTCOME_EXPIRED
