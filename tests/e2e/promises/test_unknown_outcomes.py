"""Promise I5: a tool that must not run twice ran when its server was lost. An approval decides its outcome.

A real server process is killed with `kill -9` while the tools of all tests run. The tool records each of its starts.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import Environment, transcript
from tests.e2e.support.lost_servers import Running, killed_while_running, question, returned
from tests.e2e.support.server_processes import doomed as doomed_server
from tests.status_details import details_of, refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

RETRY, DONE, GIVE_UP, APPROVE, REJECT = (
    event_pb2.APPROVAL_DECISION_RETRY,
    event_pb2.APPROVAL_DECISION_MARK_DONE,
    event_pb2.APPROVAL_DECISION_GIVE_UP,
    event_pb2.APPROVAL_DECISION_APPROVE,
    event_pb2.APPROVAL_DECISION_REJECT,
)
UNKNOWN, OK = event_pb2.TOOL_OUTCOME_UNKNOWN, event_pb2.TOOL_OUTCOME_OK
OUTCOME_UNKNOWN = "may or may not have taken effect"
SCRIPT = r"""
[[reply]]
match = '^fire (?P<label>\S+)'
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
match = '^act (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^beside (?P<label>\S+)'
tool_calls = [
    { name = "hold_irreversible", arguments = { label = "{label}" } },
    { name = "act", arguments = { label = "{label}-act" } },
]

[[reply]]
match = '^pair (?P<label>\S+)'
after_tools = 0
tool_calls = [
    { name = "hold_irreversible", arguments = { label = "{label}-1" } },
    { name = "hold_irreversible", arguments = { label = "{label}-2" } },
]

[[reply]]
match = '^read (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""
SETTINGS = {"concurrency": 1}
Turns = Mapping[str, chat_pb2.Turn]
RUNNING = (
    Running("fire asked", ("asked",), agent="asker"),
    *(
        Running(f"fire {label}", (label,))
        for label in [
            "again",
            "twice",
            "done",
            "given-up",
            "expired",
            "raced",
            "cancelled",
            "ended",
            "first",
            "settled",
        ]
    ),
    Running("pair lost", ("lost-1", "lost-2")),
    Running("beside both", ("both",), agent="asker"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lost(env: Environment) -> Turns:
    """Kills a server once, while the tools of all tests run there. Returns their turns by the messages."""
    async with doomed_server(env, "--lease", "2s") as server:
        return await killed_while_running(env, server, RUNNING)


async def ended(env: Environment, turn: chat_pb2.Turn) -> chat_pb2.Turn:
    turn_at_end = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
    assert turn_at_end.state == chat_pb2.TURN_STATE_COMPLETED
    return turn_at_end


class TestAnswers:
    async def test_i5_the_approval_of_an_outcome_names_its_call(self, env: Environment, lost: Turns) -> None:
        turn = lost["fire asked"]
        approval = await question(env, turn)
        assert (approval.tool, approval.arguments_json, approval.round) == ("hold_irreversible", '{"label":"asked"}', 2)
        assert not approval.unknown_tool_call_ids, "only others are named"
        listed = await env.stubs.approvals.ListApprovals(
            approval_pb2.ListApprovalsRequest(session_id=turn.session_id, kind=event_pb2.APPROVAL_KIND_OUTCOME)
        )
        assert list(listed.approvals) == [approval]
        events = await harness.all_events(env.stubs, turn.session_id)
        assert harness.kinds(events)[-1] == "approval_requested"
        assert events[-1].approval_requested.kind == event_pb2.APPROVAL_KIND_OUTCOME
        stream = env.stubs.chat.StreamMessage(
            chat_pb2.StreamMessageRequest(
                session_id=turn.session_id, request_id="fire asked", content=harness.text_parts("fire asked")
            )
        )
        last = [response async for response in stream][-1]
        assert last.turn.state == chat_pb2.TURN_STATE_AWAITING_OUTCOME, "the stream of a turn that waits ends OK"
        for decision in (APPROVE, REJECT):
            with refused("INVALID_REQUEST") as refusal:
                await harness.answer(env.stubs, approval, decision)
            assert "RETRY, MARK_DONE or GIVE_UP" in refusal.details.message
        with refused("ARGUMENTS_HASH_MISMATCH"):
            other = approval_pb2.Approval(approval_id=approval.approval_id, arguments_hash="0" * 64)
            await harness.answer(env.stubs, other, RETRY)
        with refused("TOOL_OUTCOME_UNKNOWN"):
            await harness.retry(env.stubs, turn.session_id, turn.turn_id)
        waiting = env.stubs.approvals.WaitApproval(approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id))
        await harness.answer(env.stubs, approval, GIVE_UP)
        assert (await waiting).approval.state == approval_pb2.APPROVAL_STATE_REJECTED
        await ended(env, turn)

    async def test_i5_retry_starts_it_again_once_under_the_same_key(self, env: Environment, lost: Turns) -> None:
        turn = lost["fire again"]
        approval = await question(env, turn)
        assert len(env.tool_control.effects("again")) == 1, "nothing starts before a decision"
        decided = await harness.answer(env.stubs, approval, RETRY)
        assert decided.approval.state == approval_pb2.APPROVAL_STATE_APPROVED
        assert decided.approval.decision == RETRY
        first, second = await env.tool_control.started("again", times=2)
        assert first.key == second.key
        env.tool_control.release("again")
        assert harness.answer_of(await ended(env, turn)) == "Told: again is done"
        assert (await harness.answer(env.stubs, approval, RETRY)).sequence == decided.sequence, "a repeat"
        with refused("APPROVAL_ALREADY_PROCESSED"):
            await harness.answer(env.stubs, approval, DONE, result_json="1")
        assert [result.outcome for result in await returned(env, turn)] == [OK]
        assert len(env.tool_control.effects("again")) == 2

    async def test_i5_a_retry_whose_server_is_lost_too_needs_another_approval(
        self, env: Environment, lost: Turns
    ) -> None:
        turn = lost["fire twice"]
        first = await question(env, turn)
        async with doomed_server(env, "--lease", "2s") as next_one:
            # Only one of the two servers that live claims it: the answer is used up by either.
            await harness.answer(env.stubs, first, RETRY)
            starts = await env.tool_control.started("twice", times=2)
            if starts[-1].pid != next_one.pid:
                env.tool_control.release("twice")
                await ended(env, turn)
                return
            await next_one.kill()
        second = await question(env, turn)
        assert second.round == first.round + 1
        assert len(env.tool_control.effects("twice")) == 2
        await harness.answer(env.stubs, second, GIVE_UP)
        await ended(env, turn)

    async def test_i5_done_is_the_result_that_a_person_gives(self, env: Environment, lost: Turns) -> None:
        turn = lost["fire done"]
        approval = await question(env, turn)
        for wrong in ("", "{", "NaN", '"\\ud83d"', '"' + "x" * 65_536 + '"'):
            with refused("INVALID_REQUEST") as refusal:
                await harness.answer(env.stubs, approval, DONE, result_json=wrong)
            assert "result_json" in refusal.details.message
        for decision in (RETRY, GIVE_UP):
            with refused("INVALID_REQUEST"):
                await harness.answer(env.stubs, approval, decision, result_json="1")
        decided = await harness.answer(env.stubs, approval, DONE, result_json='"It was printed."')
        assert decided.approval.state == approval_pb2.APPROVAL_STATE_APPROVED
        again = await harness.answer(env.stubs, approval, DONE, result_json='"It was printed."')
        assert (again.sequence, again.approval) == (decided.sequence, decided.approval)
        with refused("APPROVAL_ALREADY_PROCESSED"):
            await harness.answer(env.stubs, approval, DONE, result_json='"It was not."')
        assert harness.answer_of(await ended(env, turn)) == "Told: It was printed."
        (result,) = await returned(env, turn)
        assert (result.outcome, result.result_json, result.started) == (OK, '"It was printed."', True)
        assert len(env.tool_control.effects("done")) == 1

    async def test_i5_a_call_given_up_stays_unknown_and_the_model_gets_that(
        self, env: Environment, lost: Turns
    ) -> None:
        turn = lost["fire given-up"]
        approval = await question(env, turn)
        decided = await harness.answer(env.stubs, approval, GIVE_UP, reason="The printer is gone.")
        assert decided.approval.state == approval_pb2.APPROVAL_STATE_REJECTED
        answer = harness.answer_of(await ended(env, turn))
        assert OUTCOME_UNKNOWN in answer
        assert "The printer is gone." in answer
        assert [(result.outcome, result.started) for result in await returned(env, turn)] == [(UNKNOWN, True)]
        assert len(env.tool_control.effects("given-up")) == 1

    async def test_i5_two_that_were_lost_together_show_each_other(self, env: Environment, lost: Turns) -> None:
        turn = lost["pair lost"]
        waiting = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        approvals = [await harness.get_approval(env.stubs, item.approval_id) for item in waiting.pending]
        first, second = approvals
        assert list(first.unknown_tool_call_ids) == [second.tool_call_id]
        assert list(second.unknown_tool_call_ids) == [first.tool_call_id]
        for approval in approvals:
            await harness.answer(env.stubs, approval, GIVE_UP)
        await ended(env, turn)

    async def test_i5_the_approval_of_an_outcome_expires(self, env: Environment, lost: Turns) -> None:
        turn = lost["fire expired"]
        approval = await question(env, turn)
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            await client[env.database]["approvals"].update_one(
                {"tenant": harness.TENANT, "_id.id": approval.approval_id}, [{"$set": {"expire_time": "$$NOW"}}]
            )
        while not (await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id, seconds=1)).answer:
            assert len(env.tool_control.effects("expired")) == 1
        assert OUTCOME_UNKNOWN in harness.answer_of(await ended(env, turn))
        approval = await harness.get_approval(env.stubs, approval.approval_id)
        assert approval.state == approval_pb2.APPROVAL_STATE_EXPIRED
        assert [(result.outcome, result.started) for result in await returned(env, turn)] == [(UNKNOWN, True)]
        with refused("APPROVAL_EXPIRED"):
            await harness.answer(env.stubs, approval, RETRY)

    async def test_i6_two_deciders_at_once(self, env: Environment, lost: Turns) -> None:
        turn = lost["fire raced"]
        approval = await question(env, turn)
        async with env.another() as other:
            outcomes = await asyncio.gather(
                harness.answer(env.stubs, approval, DONE, result_json='"by one"'),
                harness.answer(other, approval, GIVE_UP),
                harness.answer(env.stubs, approval, DONE, result_json='"by another"'),
                return_exceptions=True,
            )
        losers = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert [details_of(error).reason for error in losers] == ["APPROVAL_ALREADY_PROCESSED"] * 2  # type: ignore[arg-type]
        await ended(env, turn)
        assert len(await returned(env, turn)) == 1
        assert len(env.tool_control.effects("raced")) == 1


class TestEnds:
    async def test_i5_a_turn_cancelled_while_its_outcome_is_pending_stays_unknown(
        self, env: Environment, lost: Turns
    ) -> None:
        turn = lost["fire cancelled"]
        approval = await question(env, turn)
        cancel = chat_pb2.CancelTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
        assert (await env.stubs.chat.CancelTurn(cancel)).turn.state == chat_pb2.TURN_STATE_CANCELLED
        approval = await harness.get_approval(env.stubs, approval.approval_id)
        assert approval.state == approval_pb2.APPROVAL_STATE_WITHDRAWN
        (result,) = await returned(env, turn)
        assert (result.outcome, result.started) == (UNKNOWN, True)
        assert OUTCOME_UNKNOWN in result.result_json
        with refused("TOOL_OUTCOME_UNKNOWN") as refusal:
            await harness.retry(env.stubs, turn.session_id, turn.turn_id)
        assert "send a new message" in refusal.details.message
        after = await harness.send_message_to_session(env.stubs, turn.session_id, "and now?")
        assert after.state == chat_pb2.TURN_STATE_COMPLETED
        assert len(env.tool_control.effects("cancelled")) == 1

    async def test_i5_a_session_that_ends_while_an_outcome_is_pending(self, env: Environment, lost: Turns) -> None:
        turn = lost["fire ended"]
        approval = await question(env, turn)
        await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=turn.session_id))
        approval = await harness.get_approval(env.stubs, approval.approval_id)
        assert approval.state == approval_pb2.APPROVAL_STATE_WITHDRAWN
        assert [(result.outcome, result.started) for result in await returned(env, turn)] == [(UNKNOWN, True)]


class TestSiblings:
    async def test_i5_an_approval_waits_beside_the_question(self, env: Environment, lost: Turns) -> None:
        turn = lost["beside both"]
        approval = await question(env, turn)
        waiting = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert {item.tool for item in waiting.pending} == {"hold_irreversible", "act"}
        await harness.answer(env.stubs, approval, DONE, result_json="1")
        waiting = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert waiting.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL, "the other question still stands"
        await harness.decide(env.stubs, await harness.wait_for_approval(env.stubs, turn.session_id))
        await ended(env, turn)
        assert len(env.tool_control.effects("both-act")) == 1


class TestWhileItIsUnknown:
    async def test_i5_the_same_tool_needs_an_approval_that_shows_the_unknown_call(
        self, env: Environment, lost: Turns
    ) -> None:
        turn = lost["fire first"]
        first = await question(env, turn)
        await harness.answer(env.stubs, first, GIVE_UP)
        await ended(env, turn)
        later = await harness.send_message_to_session(env.stubs, turn.session_id, "fire second")
        assert later.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL, "the policy lets it through; the unknown does not"
        second = await harness.wait_for_approval(env.stubs, turn.session_id)
        assert second.kind == event_pb2.APPROVAL_KIND_TOOL_CALL
        assert list(second.unknown_tool_call_ids) == [first.tool_call_id]
        for decision in (RETRY, DONE, GIVE_UP):
            with refused("INVALID_REQUEST") as refusal:
                await harness.answer(env.stubs, second, decision, result_json="1" if decision == DONE else "")
            assert "APPROVE or REJECT" in refusal.details.message
        assert not env.tool_control.effects("second")
        await harness.decide(env.stubs, second)
        await env.tool_control.started("second")
        env.tool_control.release("second")
        await ended(env, later)
        other = await harness.send_message_to_session(env.stubs, turn.session_id, "act freely")
        assert other.state == chat_pb2.TURN_STATE_COMPLETED, "another tool is not concerned"
        assert OUTCOME_UNKNOWN in "".join(transcript(env.model_requests("act freely")[-1]))

    async def test_i5_what_was_done_is_unknown_no_more(self, env: Environment, lost: Turns) -> None:
        turn = lost["fire settled"]
        await harness.answer(env.stubs, await question(env, turn), DONE, result_json="1")
        await ended(env, turn)
        later = await harness.send_message_to_session(env.stubs, turn.session_id, "fire freely", wait=0)
        await env.tool_control.started("freely")
        env.tool_control.release("freely")
        await ended(env, later)
