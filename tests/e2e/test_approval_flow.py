"""Approvals: what a person sees, what a decision does, what runs and what does not."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.world import World, said, until_event
from tests.problems import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^do (?P<label>[\w-]+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^both (?P<label>\w+)'
tool_calls = [
    { name = "act", arguments = { label = "{label}-acted" } },
    { name = "hold_reading", arguments = { label = "{label}-read" } },
]

[[reply]]
match = '^two (?P<label>\w+)'
tool_calls = [
    { name = "act", arguments = { label = "{label}-1" } },
    { name = "act", arguments = { label = "{label}-2" } },
]

[[reply]]
text = "Told: {tool_result}"
"""
AWAITING = chat_pb2.TURN_STATE_AWAITING_APPROVAL


async def asked(world: World, message: str, *, agent: str = "asker") -> tuple[str, chat_pb2.Turn]:
    """A session whose turn waits for a person."""
    session = await harness.create_test_session(world.stubs, agent=agent)
    turn = await harness.send_message_to_session(world.stubs, session, message)
    assert turn.state == AWAITING
    return session, turn


async def pending_of(world: World, session: str) -> Sequence[approval_pb2.Approval]:
    listed = await world.stubs.approvals.ListApprovals(
        approval_pb2.ListApprovalsRequest(session_id=session, states=[approval_pb2.APPROVAL_STATE_PENDING])
    )
    return sorted(listed.approvals, key=lambda approval: approval.arguments_json)


async def streamed(
    stubs: harness.Stubs, request: chat_pb2.StreamMessageRequest
) -> tuple[list[event_pb2.Event], chat_pb2.StreamMessageResponse]:
    """All events of one stream, and its last response."""
    events: list[event_pb2.Event] = []
    last = chat_pb2.StreamMessageResponse()
    async for response in stubs.chat.StreamMessage(request):
        events.extend(response.events)
        last = response
    return events, last


class TestApprovalFlow:
    async def test_approved_it_runs_once_and_the_turn_goes_on(self, world: World) -> None:
        session, turn = await asked(world, "do approved")
        approval = await harness.wait_for_approval(world.stubs, session)
        assert turn.pending[0].approval_id == approval.approval_id
        assert (approval.tool, approval.arguments_json) == ("act", '{"label":"approved"}')
        assert not world.workshop.effects("approved")
        decided = await harness.decide(world.stubs, approval, reason="fine with me")
        assert decided.approval.state == approval_pb2.APPROVAL_STATE_APPROVED
        assert (decided.approval.decided_by, decided.approval.reason) == ("default", "fine with me")
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: approved is done"
        assert len(world.workshop.effects("approved")) == 1
        events = await harness.all_events(world.stubs, session)
        assert events[decided.sequence - 1].approval_decided.approval_id == approval.approval_id

    async def test_rejected_it_does_not_run_and_the_model_is_told_why(self, world: World) -> None:
        session, turn = await asked(world, "do rejected")
        (approval,) = await pending_of(world, session)
        await harness.decide(world.stubs, approval, approve=False, reason="not on a Friday")
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert "rejected" in harness.answer_of(ended)
        assert "not on a Friday" in harness.answer_of(ended)
        assert not world.workshop.effects("rejected")
        events = await harness.all_events(world.stubs, session)
        returned = next(event.tool_returned for event in events if event.HasField("tool_returned"))
        assert (returned.outcome, returned.started) == (event_pb2.TOOL_OUTCOME_REJECTED, False)
        assert "tool_started" not in harness.kinds(events)

    async def test_nobody_decides_and_it_expires(self, world: World) -> None:
        session, turn = await asked(world, "do expired", agent="hurried")
        (approval,) = await pending_of(world, session)
        waited = await world.stubs.approvals.WaitApproval(
            approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id, wait=Duration(seconds=10))
        )
        assert waited.approval.state == approval_pb2.APPROVAL_STATE_EXPIRED
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert "Nobody approved" in harness.answer_of(ended)
        assert not world.workshop.effects("expired")

    async def test_a_sibling_runs_meanwhile_and_the_model_is_called_once_after_both(self, world: World) -> None:
        session = await harness.create_test_session(world.stubs, agent="asker")
        turn = await harness.send_message_to_session(world.stubs, session, "both siblings", wait=0)
        await world.workshop.started("siblings-read")
        approval = await harness.wait_for_approval(world.stubs, session)
        assert not world.workshop.effects("siblings-acted")
        world.workshop.release("siblings-read")
        waiting = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert waiting.state == AWAITING
        assert [item.tool for item in waiting.pending] == ["act"]
        await harness.decide(world.stubs, approval)
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        heard = world.heard("both siblings")
        assert len(heard) == 2
        assert said(heard[1]) == [
            "user: both siblings",
            "call: act",
            "call: hold_reading",
            "tool: siblings-read is done",
            "tool: siblings-acted is done",
        ]

    async def test_a_decision_while_the_sibling_runs_starts_the_call_at_once(self, world: World) -> None:
        session = await harness.create_test_session(world.stubs, agent="asker")
        turn = await harness.send_message_to_session(world.stubs, session, "both early", wait=0)
        approval = await harness.wait_for_approval(world.stubs, session)
        await world.workshop.started("early-read")
        async with world.another() as elsewhere:
            await harness.decide(elsewhere, approval)
            await world.workshop.started("early-acted")
        world.workshop.release("early-read")
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert len(world.heard("both early")) == 2

    async def test_a_rejection_while_the_sibling_runs_is_told_to_the_model(self, world: World) -> None:
        session = await harness.create_test_session(world.stubs, agent="asker")
        turn = await harness.send_message_to_session(world.stubs, session, "both refused", wait=0)
        approval = await harness.wait_for_approval(world.stubs, session)
        await world.workshop.started("refused-read")
        async with world.another() as elsewhere:
            await harness.decide(elsewhere, approval, approve=False)
        world.workshop.release("refused-read")
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert "tool: A person rejected this call." in said(world.heard("both refused")[1])

    async def test_an_expiry_while_the_sibling_runs_is_told_to_the_model(self, world: World) -> None:
        session = await harness.create_test_session(world.stubs, agent="hurried")
        turn = await harness.send_message_to_session(world.stubs, session, "both lapsed", wait=0)
        await world.workshop.started("lapsed-read")
        await until_event(world.stubs, session, "approval_expired")
        world.workshop.release("lapsed-read")
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert "tool: Nobody approved this call in time." in said(world.heard("both lapsed")[1])

    async def test_two_approvals_of_one_message_are_decided_one_by_one(self, world: World) -> None:
        session, turn = await asked(world, "two parts")
        assert [item.tool for item in turn.pending] == ["act", "act"]
        first, second = await pending_of(world, session)
        await harness.decide(world.stubs, second)
        await world.workshop.started("parts-2")
        waiting = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert waiting.state == AWAITING
        assert [item.approval_id for item in waiting.pending] == [first.approval_id]
        await harness.decide(world.stubs, first, approve=False)
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert not world.workshop.effects("parts-1")
        assert len(world.heard("two parts")) == 2

    async def test_two_approvals_decided_at_once_on_two_servers_lose_no_wake_up(self, world: World) -> None:
        async with world.another() as elsewhere:
            for number in range(8):
                session, turn = await asked(world, f"two rush{number}")
                first, second = await pending_of(world, session)
                await asyncio.gather(harness.decide(world.stubs, first), harness.decide(elsewhere, second))
                ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
                assert ended.state == chat_pb2.TURN_STATE_COMPLETED
                assert [len(world.workshop.effects(f"rush{number}-{call}")) for call in (1, 2)] == [1, 1]

    async def test_a_turn_that_waits_holds_no_lease(self, world: World) -> None:
        session, turn = await asked(world, "do unleased")
        async with AsyncMongoClient[dict[str, object]](world.mongo_uri) as client:
            head = await client[world.database]["heads"].find_one({"_id.session_id": session})
        assert head is not None
        assert (head["owner"], head["lease_until"], head["wake_at"]) == ("", None, None)
        assert head["active_turn"] == turn.turn_id

    async def test_whoever_waits_for_it_is_told_of_the_decision(self, world: World) -> None:
        session, _ = await asked(world, "do awaited")
        (approval,) = await pending_of(world, session)
        request = approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id, wait=Duration(seconds=20))
        async with world.another() as elsewhere:
            waits = [stubs.approvals.WaitApproval(request) for stubs in (world.stubs, elsewhere)]
            await harness.decide(world.stubs, approval, approve=False)
            for wait in waits:
                assert (await wait).approval.state == approval_pb2.APPROVAL_STATE_REJECTED

    async def test_when_the_server_that_asked_is_gone_another_goes_on(self, world: World) -> None:
        async with world.another() as first:
            session = await harness.create_test_session(first, agent="asker")
            turn = await harness.send_message_to_session(first, session, "do handed-over")
            approval = await harness.wait_for_approval(first, session)
        await harness.decide(world.stubs, approval)
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: handed-over is done"

    async def test_a_stream_ends_where_the_turn_waits_and_goes_on_when_it_is_attached_again(self, world: World) -> None:
        session = await harness.create_test_session(world.stubs, agent="asker")
        request = chat_pb2.StreamMessageRequest(
            session_id=session, request_id=harness.new_request_id(), content=harness.text_parts("do streamed")
        )
        before, last = await streamed(world.stubs, request)
        assert last.turn.state == AWAITING
        assert before[-1].HasField("approval_requested")
        await harness.decide(world.stubs, await harness.wait_for_approval(world.stubs, session))
        await harness.wait_for_turn(world.stubs, session, last.turn.turn_id)
        request.after = last.cursor
        after, last = await streamed(world.stubs, request)
        assert last.turn.state == chat_pb2.TURN_STATE_COMPLETED
        numbers = [event.sequence for event in (*before, *after) if event.sequence]
        assert numbers == [event.sequence for event in await harness.all_events(world.stubs, session) if event.turn_id]

    async def test_the_inbox_lists_oldest_first_and_filters(self, world: World) -> None:
        sessions = [(await asked(world, f"do inbox{number}"))[0] for number in range(3)]
        found: list[approval_pb2.Approval] = []
        token = ""
        while True:
            page = await world.stubs.approvals.ListApprovals(
                approval_pb2.ListApprovalsRequest(
                    states=[approval_pb2.APPROVAL_STATE_PENDING],
                    kind=event_pb2.APPROVAL_KIND_TOOL_CALL,
                    tool="act",
                    page_size=2,
                    page_token=token,
                )
            )
            found.extend(page.approvals)
            token = page.next_page_token
            if not token:
                break
        ours = [approval.session_id for approval in found if approval.session_id in sessions]
        assert ours == sessions
        none = await world.stubs.approvals.ListApprovals(
            approval_pb2.ListApprovalsRequest(session_id=sessions[0], tool="add")
        )
        assert not none.approvals


class TestRefusedDecisions:
    async def test_other_arguments_than_those_shown_are_refused_and_nothing_changes(self, world: World) -> None:
        session, _ = await asked(world, "do mismatched")
        (approval,) = await pending_of(world, session)
        approval.arguments_hash = "0" * 64
        with refused("ARGUMENTS_HASH_MISMATCH") as refusal:
            await harness.decide(world.stubs, approval)
        assert refusal.problem.status == grpc.StatusCode.FAILED_PRECONDITION
        assert "google.rpc.PreconditionFailure" in refusal.problem.types
        assert len(await pending_of(world, session)) == 1
        assert "approval_decided" not in harness.kinds(await harness.all_events(world.stubs, session))

    async def test_a_second_decision_is_told_who_won(self, world: World) -> None:
        session, turn = await asked(world, "do twice")
        (approval,) = await pending_of(world, session)
        first = await harness.decide(world.stubs, approval, approve=False)
        with refused("APPROVAL_ALREADY_PROCESSED") as refusal:
            await harness.decide(world.stubs, approval)
        assert refusal.problem.metadata["state"] == "REJECTED"
        assert refusal.problem.metadata["decided_by"] == "default"
        again = await harness.decide(world.stubs, approval, approve=False)
        assert (again.sequence, again.cursor) == (first.sequence, first.cursor)
        await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert not world.workshop.effects("twice")

    async def test_a_cancelled_turns_approval_is_withdrawn(self, world: World) -> None:
        session, turn = await asked(world, "do withdrawn")
        (approval,) = await pending_of(world, session)
        await world.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        await until_event(world.stubs, session, "approval_withdrawn")
        with refused("APPROVAL_ALREADY_PROCESSED") as refusal:
            await harness.decide(world.stubs, approval)
        assert refusal.problem.metadata["state"] == "WITHDRAWN"

    async def test_an_approval_that_does_not_exist(self, world: World) -> None:
        missing = approval_pb2.Approval(approval_id="nobody", arguments_hash="0" * 64)
        with refused("APPROVAL_NOT_FOUND") as refusal:
            await harness.decide(world.stubs, missing)
        assert refusal.problem.status == grpc.StatusCode.NOT_FOUND
        assert "google.rpc.ResourceInfo" in refusal.problem.types
