"""Decisions that a session remembers: what they are bound to, how they are used up, how they end."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import Environment
from tests.status_details import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^do (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^set (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "hold_idempotent", arguments = { label = "{label}" } }]

[[reply]]
match = '^read (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
match = '^lose (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
match = '^many (?P<label>\S+)'
after_tools = 0
tool_calls = [
    { name = "act", arguments = { label = "{label}" } },
    { name = "act", arguments = { label = "{label}" } },
    { name = "act", arguments = { label = "{label}" } },
]

[[reply]]
text = "Done."
"""
TOOL, ARGUMENTS = event_pb2.REMEMBER_SCOPE_TOOL, event_pb2.REMEMBER_SCOPE_ARGUMENTS
APPROVE, REJECT = event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_REJECT
WAITS, DONE = chat_pb2.TURN_STATE_AWAITING_APPROVAL, chat_pb2.TURN_STATE_COMPLETED


async def pending(env: Environment, text: str, *, session: str = "") -> approval_pb2.Approval:
    """Sends a message whose turn asks. Returns the approval."""
    session = session or await harness.create_test_session(env.stubs, agent="rememberer")
    turn = await harness.send_message_to_session(env.stubs, session, text)
    assert turn.state == WAITS, turn
    return await harness.get_approval(env.stubs, turn.pending[0].approval_id)


async def remember(
    env: Environment,
    approval: approval_pb2.Approval,
    scope: event_pb2.RememberScope.ValueType = ARGUMENTS,
    *,
    seconds: float = 3600,
    uses: int = 0,
    **fields: Any,
) -> approval_pb2.DecideApprovalResponse:
    """Approves, and asks to remember it."""
    length = Duration()
    length.FromTimedelta(timedelta(seconds=seconds))
    decision = fields.pop("decision", APPROVE)
    return await harness.answer(
        env.stubs, approval, decision, remember=scope, remember_for=length, remember_uses=uses, **fields
    )


async def remembered(env: Environment, text: str, scope: Any = ARGUMENTS, **fields: Any) -> approval_pb2.Approval:
    """Returns an approval whose decision its session remembers; its turn has ended."""
    approval = await pending(env, text)
    await remember(env, approval, scope, **fields)
    await harness.wait_for_turn(env.stubs, approval.session_id, approval.turn_id)
    return approval


async def again(env: Environment, first: approval_pb2.Approval, text: str) -> chat_pb2.Turn:
    return await harness.send_message_to_session(env.stubs, first.session_id, text)


async def listed(env: Environment, session: str) -> list[event_pb2.RememberedDecision]:
    request = approval_pb2.ListRememberedDecisionsRequest(session_id=session)
    return list((await env.stubs.approvals.ListRememberedDecisions(request)).decisions)


async def approvals_of(env: Environment, session: str) -> list[approval_pb2.Approval]:
    request = approval_pb2.ListApprovalsRequest(session_id=session)
    return list((await env.stubs.approvals.ListApprovals(request)).approvals)


class TestUsed:
    async def test_a_later_call_has_an_approval_of_its_own_born_approved(self, env: Environment) -> None:
        first = await remembered(env, "do same", uses=2)
        turn = await again(env, first, "do same")
        assert turn.state == DONE
        _, second = await approvals_of(env, first.session_id)
        assert (second.state, second.decision) == (approval_pb2.APPROVAL_STATE_APPROVED, APPROVE)
        assert (second.remembered_from, second.turn_id) == (first.approval_id, turn.turn_id)
        assert second.decided_by == (await harness.get_approval(env.stubs, first.approval_id)).decided_by
        assert len(env.tool_control.effects("same")) == 2
        events = [
            event for event in await harness.all_events(env.stubs, first.session_id) if event.turn_id == turn.turn_id
        ]
        kinds = [kind for kind in harness.kinds(events) if kind.startswith(("tool_", "approval_"))]
        assert kinds == ["tool_called", "approval_requested", "approval_decided", "tool_started", "tool_returned"]
        decided = next(event.approval_decided for event in events if event.HasField("approval_decided"))
        assert decided.remembered_from == first.approval_id
        (left,) = await listed(env, first.session_id)
        assert (left.approval_id, left.uses_left, left.scope) == (first.approval_id, 1, ARGUMENTS)

    async def test_the_event_is_durable_and_ignorable(self, env: Environment) -> None:
        first = await remembered(env, "do told")
        events = await harness.all_events(env.stubs, first.session_id)
        (event,) = [event for event in events if event.HasField("remembered_decision")]
        assert event.ignorable
        assert event.sequence > 0
        decision = event.remembered_decision
        assert (decision.state, decision.uses_left) == (event_pb2.REMEMBERED_STATE_ACTIVE, 10)
        assert (decision.approval_id, decision.tool) == (first.approval_id, "act")

    async def test_its_uses_are_counted_and_then_a_person_is_asked(self, env: Environment) -> None:
        first = await remembered(env, "do counted", uses=2)
        states = [(await again(env, first, "do counted")).state for _ in range(2)]
        assert states == [DONE, DONE]
        assert await listed(env, first.session_id) == []
        assert (await again(env, first, "do counted")).state == WAITS
        assert len(env.tool_control.effects("counted")) == 3

    async def test_calls_of_one_message_take_a_use_each(self, env: Environment) -> None:
        first = await remembered(env, "do crowd", uses=2)
        turn = await again(env, first, "many crowd")
        assert turn.state == WAITS
        assert len(turn.pending) == 1
        assert len(env.tool_control.effects("crowd")) == 3
        assert await listed(env, first.session_id) == []

    async def test_its_time_is_the_databases(self, env: Environment) -> None:
        first = await remembered(env, "do timed", seconds=3600)
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            sessions = client[env.database]["sessions"]
            (document,) = await sessions.find(
                {"_id.tenant": harness.TENANT, "_id.session_id": first.session_id}
            ).to_list()
            ends = document["remembered"][0]["expire_time"]
            await sessions.update_one(
                {"_id": document["_id"]}, {"$set": {"remembered.0.expire_time": ends - timedelta(hours=1)}}
            )
        assert await listed(env, first.session_id) == []
        async with env.another() as other:  # it has nothing of the session in memory
            turn = await harness.send_message_to_session(other, first.session_id, "do timed")
        assert turn.state == WAITS


class TestBound:
    async def test_other_arguments_ask(self, env: Environment) -> None:
        first = await remembered(env, "do mine")
        assert (await again(env, first, "do yours")).state == WAITS
        assert not env.tool_control.effects("yours")

    async def test_by_tool_other_arguments_are_approved_and_another_tool_asks(self, env: Environment) -> None:
        for label in ("one", "two"):
            env.tool_control.release(label)
        first = await remembered(env, "set one", TOOL)
        assert (await again(env, first, "set two")).state == DONE
        assert (await again(env, first, "do two")).state == WAITS

    async def test_another_session_asks_and_so_does_a_fork(self, env: Environment) -> None:
        first = await remembered(env, "do own")
        await pending(env, "do own")
        forked = await env.stubs.sessions.ForkSession(
            session_pb2.ForkSessionRequest(session_id=first.session_id, request_id=harness.new_request_id())
        )
        fork = forked.session.session_id
        assert await listed(env, fork) == []
        turn = await harness.send_message_to_session(env.stubs, fork, "do own")
        assert turn.state == WAITS

    async def test_after_a_restoration_a_person_is_asked(self, env: Environment) -> None:
        first = await remembered(env, "do restored")
        restore = session_pb2.RestoreCheckpointRequest(session_id=first.session_id, sequence=1)
        restore.request_id = harness.new_request_id()
        await env.stubs.sessions.RestoreCheckpoint(restore)
        assert await listed(env, first.session_id) == []
        assert (await again(env, first, "do restored")).state == WAITS

    async def test_while_a_call_of_the_tool_has_an_unknown_outcome_a_person_is_asked(self, env: Environment) -> None:
        env.tool_control.release("known")
        first = await remembered(env, "lose known")
        lost = await pending(env, "lose track-of-it", session=first.session_id)
        await harness.decide(env.stubs, lost)
        turn = await harness.wait_for_turn(env.stubs, first.session_id, lost.turn_id)
        assert turn.state == chat_pb2.TURN_STATE_AWAITING_OUTCOME
        question = await harness.get_approval(env.stubs, turn.pending[0].approval_id)
        with refused("INVALID_REQUEST"):
            await remember(env, question, decision=event_pb2.APPROVAL_DECISION_GIVE_UP)
        await harness.answer(env.stubs, question, event_pb2.APPROVAL_DECISION_GIVE_UP)
        await harness.wait_for_turn(env.stubs, first.session_id, lost.turn_id)
        assert len(await listed(env, first.session_id)) == 1
        assert (await again(env, first, "lose known")).state == WAITS
        env.tool_control.release("track-of-it")

    async def test_it_ends_with_the_session(self, env: Environment) -> None:
        first = await remembered(env, "do ended")
        await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=first.session_id))
        assert await listed(env, first.session_id) == []


class TestRefused:
    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({"scope": TOOL}, "must be ARGUMENTS: act is IRREVERSIBLE"),
            ({"decision": REJECT}, "belongs to APPROVE of a TOOL_CALL alone"),
            ({"edited_arguments_json": '{"label":"other"}'}, "does not go with edited arguments"),
        ],
    )
    async def test_what_must_not_be_remembered(self, env: Environment, fields: dict[str, Any], problem: str) -> None:
        approval = await pending(env, "do refused")
        with refused("INVALID_REQUEST") as refusal:
            await remember(env, approval, **fields)
        assert refusal.details.fields == ("remember",)
        assert problem in refusal.details.message
        approval = await harness.get_approval(env.stubs, approval.approval_id)
        assert approval.state == approval_pb2.APPROVAL_STATE_PENDING
        assert await listed(env, approval.session_id) == []

    async def test_by_a_rule_that_forbids_it(self, env: Environment) -> None:
        approval = await pending(env, "read nothing")
        with refused("INVALID_REQUEST") as refusal:
            await remember(env, approval)
        assert "remember is forbidden by the rule that asks" in refusal.details.message

    @pytest.mark.parametrize(("seconds", "uses", "field"), [(0, 1, "remember_for"), (60, 11, "remember_uses")])
    async def test_limits_that_are_none(self, env: Environment, seconds: float, uses: int, field: str) -> None:
        approval = await pending(env, "do limits")
        with refused("INVALID_REQUEST") as refusal:
            await remember(env, approval, seconds=seconds, uses=uses)
        assert refusal.details.fields == (field,)


class TestRevoked:
    async def test_a_revoked_one_approves_nothing_and_again_is_ok(self, env: Environment) -> None:
        first = await remembered(env, "do revoked")
        request = approval_pb2.RevokeRememberedDecisionRequest(approval_id=first.approval_id)
        response = await env.stubs.approvals.RevokeRememberedDecision(request)
        events = await harness.all_events(env.stubs, first.session_id)
        revoked = events[response.sequence - 1].remembered_decision
        assert (revoked.state, revoked.approval_id) == (event_pb2.REMEMBERED_STATE_REVOKED, first.approval_id)
        assert revoked.revoked_by
        assert (await env.stubs.approvals.RevokeRememberedDecision(request)).sequence == 0
        assert await harness.all_events(env.stubs, first.session_id) == events
        assert (await again(env, first, "do revoked")).state == WAITS

    async def test_an_approval_that_is_not_there(self, env: Environment) -> None:
        with refused("APPROVAL_NOT_FOUND"):
            await env.stubs.approvals.RevokeRememberedDecision(
                approval_pb2.RevokeRememberedDecisionRequest(approval_id="nothing")
            )


class TestRaces:
    async def test_revocation_and_use_at_once_agree(self, env: Environment) -> None:
        async with env.another() as other:
            for number in range(8):
                first = await remembered(env, f"do raced-{number}", uses=1)
                request = approval_pb2.RevokeRememberedDecisionRequest(approval_id=first.approval_id)
                turn, revoked = await asyncio.gather(
                    again(env, first, f"do raced-{number}"), other.approvals.RevokeRememberedDecision(request)
                )
                assert (turn.state == WAITS) == bool(revoked.sequence)
                assert len(env.tool_control.effects(f"raced-{number}")) == (1 if revoked.sequence else 2)
        await check(env.mongo_uri, env.database)

    async def test_many_sessions_and_replicas_use_each_decision_exactly_so_often(self, env: Environment) -> None:
        async with env.another() as other:
            firsts = [await remembered(env, f"do often-{number}", uses=3) for number in range(4)]
            for first in firsts:
                label = f"often-{firsts.index(first)}"
                sent = [
                    harness.send_message_to_session(
                        stubs, first.session_id, f"do {label}", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
                    )
                    for stubs in (env.stubs, other) * 3
                ]
                turns = await asyncio.gather(*sent)
                waiting = None
                for turn in sorted(turns, key=lambda turn: turn.first_sequence)[:4]:
                    waiting = await harness.wait_for_turn(env.stubs, first.session_id, turn.turn_id)
                assert waiting is not None
                assert waiting.state == WAITS
                assert len(env.tool_control.effects(label)) == 4
        await check(env.mongo_uri, env.database)
