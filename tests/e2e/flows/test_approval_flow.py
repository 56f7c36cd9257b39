"""Approvals: what an approver is shown, what a decision does, what runs and what does not."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import Environment, transcript, until_event
from tests.status_details import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^do (?P<label>[\w-]+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^hide$'
tool_calls = [{ name = "act", arguments = { label = "p\u0430ypal\u00a0now" } }]

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


async def pending_approval(env: Environment, message: str, *, agent: str = "asker") -> tuple[str, chat_pb2.Turn]:
    """Sends a message whose turn waits for an approval. Returns session id and turn."""
    session = await harness.create_test_session(env.stubs, agent=agent)
    turn = await harness.send_message_to_session(env.stubs, session, message)
    assert turn.state == AWAITING
    return session, turn


async def pending_of(env: Environment, session: str) -> Sequence[approval_pb2.Approval]:
    listed = await env.stubs.approvals.ListApprovals(
        approval_pb2.ListApprovalsRequest(session_id=session, states=[approval_pb2.APPROVAL_STATE_PENDING])
    )
    return sorted(listed.approvals, key=lambda approval: approval.arguments_json)


async def streamed(
    stubs: harness.Stubs, request: chat_pb2.StreamMessageRequest
) -> tuple[list[event_pb2.Event], chat_pb2.StreamMessageResponse]:
    """Returns all events of one stream, and its last response."""
    events: list[event_pb2.Event] = []
    last = chat_pb2.StreamMessageResponse()
    async for response in stubs.chat.StreamMessage(request):
        events.extend(response.events)
        last = response
    return events, last


class TestApprovalFlow:
    async def test_approved_it_runs_once_and_the_turn_goes_on(self, env: Environment) -> None:
        session, turn = await pending_approval(env, "do approved")
        approval = await harness.wait_for_approval(env.stubs, session)
        assert turn.pending[0].approval_id == approval.approval_id
        assert (approval.tool, approval.arguments_json) == ("act", '{"label":"approved"}')
        assert not env.tool_control.effects("approved")
        decided = await harness.decide(env.stubs, approval, reason="fine with me")
        assert decided.approval.state == approval_pb2.APPROVAL_STATE_APPROVED
        assert (decided.approval.decided_by, decided.approval.reason) == ("decider", "fine with me")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: approved is done"
        assert len(env.tool_control.effects("approved")) == 1
        events = await harness.all_events(env.stubs, session)
        assert events[decided.sequence - 1].approval_decided.approval_id == approval.approval_id

    async def test_a_rejected_call_does_not_run_and_the_model_gets_the_reason(self, env: Environment) -> None:
        session, turn = await pending_approval(env, "do rejected")
        (approval,) = await pending_of(env, session)
        await harness.decide(env.stubs, approval, approve=False, reason="not on a Friday")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert "rejected" in harness.answer_of(ended)
        assert "not on a Friday" in harness.answer_of(ended)
        assert not env.tool_control.effects("rejected")
        events = await harness.all_events(env.stubs, session)
        returned = next(event.tool_returned for event in events if event.HasField("tool_returned"))
        assert (returned.outcome, returned.started) == (event_pb2.TOOL_OUTCOME_REJECTED, False)
        assert "tool_started" not in harness.kinds(events)

    async def test_an_approver_sees_what_is_hidden_and_what_is_stored_runs(self, env: Environment) -> None:
        session, _ = await pending_approval(env, "hide")
        (approval,) = await pending_of(env, session)
        assert approval.arguments_json == '{"label":"p\u0430ypal\\u00a0now"}'
        assert list(approval.mixed_script_words) == ["p\u0430ypal"]
        assert await harness.get_approval(env.stubs, approval.approval_id) == approval
        decided = await harness.answer(
            env.stubs,
            approval,
            event_pb2.APPROVAL_DECISION_APPROVE,
            edited_arguments_json=approval.arguments_json,  # copied from what is shown: no edit
        )
        assert decided.approval.approval_id == approval.approval_id
        await until_event(env.stubs, session, "turn_completed")
        assert len(env.tool_control.effects("p\u0430ypal\u00a0now")) == 1

    async def test_an_undecided_approval_expires(self, env: Environment) -> None:
        session, turn = await pending_approval(env, "do expired", agent="hurried")
        (approval,) = await pending_of(env, session)
        waited = await env.stubs.approvals.WaitApproval(
            approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id, wait=Duration(seconds=10))
        )
        assert waited.approval.state == approval_pb2.APPROVAL_STATE_EXPIRED
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert "was not approved" in harness.answer_of(ended)
        assert not env.tool_control.effects("expired")

    async def test_a_sibling_runs_meanwhile_and_the_model_is_called_once_after_both(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, "both siblings", wait=0)
        await env.tool_control.started("siblings-read")
        approval = await harness.wait_for_approval(env.stubs, session)
        assert not env.tool_control.effects("siblings-acted")
        env.tool_control.release("siblings-read")
        waiting = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert waiting.state == AWAITING
        assert [item.tool for item in waiting.pending] == ["act"]
        await harness.decide(env.stubs, approval)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        requests = env.model_requests("both siblings")
        assert len(requests) == 2
        assert transcript(requests[1]) == [
            "user: both siblings",
            "call: act",
            "call: hold_reading",
            "tool: siblings-read is done",
            "tool: siblings-acted is done",
        ]

    async def test_a_decision_while_the_sibling_runs_starts_the_call_at_once(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, "both early", wait=0)
        approval = await harness.wait_for_approval(env.stubs, session)
        await env.tool_control.started("early-read")
        async with env.another() as other:
            await harness.decide(other, approval)
            await env.tool_control.started("early-acted")
        env.tool_control.release("early-read")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert len(env.model_requests("both early")) == 2

    async def test_a_rejection_while_the_sibling_runs_reaches_the_model(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, "both refused", wait=0)
        approval = await harness.wait_for_approval(env.stubs, session)
        await env.tool_control.started("refused-read")
        async with env.another() as other:
            await harness.decide(other, approval, approve=False)
        env.tool_control.release("refused-read")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert "tool: A person rejected this call." in transcript(env.model_requests("both refused")[1])

    async def test_an_expiry_while_the_sibling_runs_reaches_the_model(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="hurried")
        turn = await harness.send_message_to_session(env.stubs, session, "both lapsed", wait=0)
        await env.tool_control.started("lapsed-read")
        await until_event(env.stubs, session, "approval_expired")
        env.tool_control.release("lapsed-read")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert "tool: This call was not approved in time." in transcript(env.model_requests("both lapsed")[1])

    async def test_two_approvals_of_one_message_are_decided_one_by_one(self, env: Environment) -> None:
        session, turn = await pending_approval(env, "two parts")
        assert [item.tool for item in turn.pending] == ["act", "act"]
        first, second = await pending_of(env, session)
        await harness.decide(env.stubs, second)
        await env.tool_control.started("parts-2")
        waiting = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert waiting.state == AWAITING
        assert [item.approval_id for item in waiting.pending] == [first.approval_id]
        await harness.decide(env.stubs, first, approve=False)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert not env.tool_control.effects("parts-1")
        assert len(env.model_requests("two parts")) == 2

    async def test_two_approvals_decided_at_once_on_two_servers_lose_no_wake_up(self, env: Environment) -> None:
        async with env.another() as other:
            for number in range(8):
                session, turn = await pending_approval(env, f"two rush{number}")
                first, second = await pending_of(env, session)
                await asyncio.gather(harness.decide(env.stubs, first), harness.decide(other, second))
                ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
                assert ended.state == chat_pb2.TURN_STATE_COMPLETED
                assert [len(env.tool_control.effects(f"rush{number}-{call}")) for call in (1, 2)] == [1, 1]

    async def test_a_turn_that_waits_holds_no_lease(self, env: Environment) -> None:
        session, turn = await pending_approval(env, "do unleased")
        async with AsyncMongoClient[dict[str, object]](env.mongo_uri) as client:
            head = await client[env.database]["heads"].find_one({"tenant": harness.TENANT, "session_id": session})
        assert head is not None
        assert (head["owner"], head["lease_until"], head["wake_at"]) == ("", None, None)
        assert head["active_turn"] == turn.turn_id

    async def test_every_waiting_caller_gets_the_decision(self, env: Environment) -> None:
        session, _ = await pending_approval(env, "do awaited")
        (approval,) = await pending_of(env, session)
        request = approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id, wait=Duration(seconds=20))
        async with env.another() as other:
            waits = [stubs.approvals.WaitApproval(request) for stubs in (env.stubs, other)]
            await harness.decide(env.stubs, approval, approve=False)
            for wait in waits:
                assert (await wait).approval.state == approval_pb2.APPROVAL_STATE_REJECTED

    async def test_when_the_first_server_is_gone_another_goes_on(self, env: Environment) -> None:
        async with env.another() as first:
            session = await harness.create_test_session(first, agent="asker")
            turn = await harness.send_message_to_session(first, session, "do handed-over")
            approval = await harness.wait_for_approval(first, session)
        await harness.decide(env.stubs, approval)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: handed-over is done"

    async def test_a_stream_ends_where_the_turn_waits_and_goes_on_when_it_is_attached_again(
        self, env: Environment
    ) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        request = chat_pb2.StreamMessageRequest(
            session_id=session, request_id=harness.new_request_id(), content=harness.text_parts("do streamed")
        )
        before, last = await streamed(env.stubs, request)
        assert last.turn.state == AWAITING
        assert before[-1].HasField("approval_requested")
        await harness.decide(env.stubs, await harness.wait_for_approval(env.stubs, session))
        await harness.wait_for_turn(env.stubs, session, last.turn.turn_id)
        request.after = last.cursor
        after, last = await streamed(env.stubs, request)
        assert last.turn.state == chat_pb2.TURN_STATE_COMPLETED
        numbers = [event.sequence for event in (*before, *after) if event.sequence]
        assert numbers == [event.sequence for event in await harness.all_events(env.stubs, session) if event.turn_id]

    async def test_the_inbox_lists_oldest_first_and_filters(self, env: Environment) -> None:
        sessions = [(await pending_approval(env, f"do inbox{number}"))[0] for number in range(3)]
        approvals: list[approval_pb2.Approval] = []
        token = ""
        while True:
            page = await env.stubs.approvals.ListApprovals(
                approval_pb2.ListApprovalsRequest(
                    states=[approval_pb2.APPROVAL_STATE_PENDING],
                    kind=event_pb2.APPROVAL_KIND_TOOL_CALL,
                    tool="act",
                    page_size=2,
                    page_token=token,
                )
            )
            approvals.extend(page.approvals)
            token = page.next_page_token
            if not token:
                break
        ours = [approval.session_id for approval in approvals if approval.session_id in sessions]
        assert ours == sessions
        none = await env.stubs.approvals.ListApprovals(
            approval_pb2.ListApprovalsRequest(session_id=sessions[0], tool="add")
        )
        assert not none.approvals


class TestRefusedDecisions:
    async def test_other_arguments_than_those_shown_are_refused_and_nothing_changes(self, env: Environment) -> None:
        session, _ = await pending_approval(env, "do mismatched")
        (approval,) = await pending_of(env, session)
        approval.arguments_hash = "0" * 64
        with refused("ARGUMENTS_HASH_MISMATCH") as refusal:
            await harness.decide(env.stubs, approval)
        assert refusal.details.status == grpc.StatusCode.FAILED_PRECONDITION
        assert "google.rpc.PreconditionFailure" in refusal.details.types
        assert len(await pending_of(env, session)) == 1
        assert "approval_decided" not in harness.kinds(await harness.all_events(env.stubs, session))

    async def test_another_decision_is_refused_with_the_first_one_s_state(self, env: Environment) -> None:
        session, turn = await pending_approval(env, "do twice")
        (approval,) = await pending_of(env, session)
        first = await harness.decide(env.stubs, approval, approve=False)
        with refused("APPROVAL_ALREADY_PROCESSED") as refusal:
            await harness.decide(env.stubs, approval)
        assert refusal.details.metadata["state"] == "REJECTED"
        assert refusal.details.metadata["decided_by"] == "decider"
        again = await harness.decide(env.stubs, approval, approve=False)
        assert (again.sequence, again.cursor) == (first.sequence, first.cursor)
        await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert not env.tool_control.effects("twice")

    async def test_a_cancelled_turns_approval_is_withdrawn(self, env: Environment) -> None:
        session, turn = await pending_approval(env, "do withdrawn")
        (approval,) = await pending_of(env, session)
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        await until_event(env.stubs, session, "approval_withdrawn")
        with refused("APPROVAL_ALREADY_PROCESSED") as refusal:
            await harness.decide(env.stubs, approval)
        assert refusal.details.metadata["state"] == "WITHDRAWN"

    async def test_an_approval_that_does_not_exist(self, env: Environment) -> None:
        missing = approval_pb2.Approval(approval_id="unknown", arguments_hash="0" * 64)
        with refused("APPROVAL_NOT_FOUND") as refusal:
            await harness.decide(env.stubs, missing)
        assert refusal.details.status == grpc.StatusCode.NOT_FOUND
        assert "google.rpc.ResourceInfo" in refusal.details.types
