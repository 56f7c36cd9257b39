"""A message with if_busy WITHDRAW_PENDING: it takes the place of a turn that waits for approvals alone."""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import grpc
import pytest

from tests import harness
from tests.e2e.promises.test_i06_i07 import LEFT, SWEEPING, expires, reason_of
from tests.e2e.support.environment import Environment, transcript, until_event
from tests.e2e.support.lost_servers import question
from tests.status_details import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^do (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^both (?P<label>\S+)'
after_tools = 0
tool_calls = [
    { name = "act", arguments = { label = "{label}-1" } },
    { name = "act", arguments = { label = "{label}-2" } },
]

[[reply]]
match = '^beside (?P<label>\S+)'
after_tools = 0
tool_calls = [
    { name = "act", arguments = { label = "{label}-act" } },
    { name = "hold_reading", arguments = { label = "{label}" } },
]

[[reply]]
match = '^mine (?P<label>\S+)'
after_tools = 0
tool_calls = [
    { name = "act", arguments = { label = "{label}-act" } },
    { name = "look", arguments = { at = "{label}" } },
]

[[reply]]
match = "^stall"
text = "Once upon a time there was"
chunk = 5
fail = "stall"
fail_after = 2

[[reply]]
match = '^lose (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
SETTINGS = {"sweep": timedelta(hours=1)}
"""The module's own server never sweeps: approvals expire there only when a call reads them."""
WITHDRAW, ENQUEUE = chat_pb2.IF_BUSY_WITHDRAW_PENDING, chat_pb2.IF_BUSY_ENQUEUE
WITHDRAWN, PENDING = approval_pb2.APPROVAL_STATE_WITHDRAWN, approval_pb2.APPROVAL_STATE_PENDING
LOOK = chat_pb2.ClientTool(name="look", schema_json='{"type":"object","properties":{"at":{"type":"string"}}}')
SUPERSEDED_TEXT = "The user sent another message before this call was approved; it did not run."


async def asking(env: Environment, text: str, **fields: Any) -> tuple[str, chat_pb2.Turn, approval_pb2.Approval]:
    """Starts a turn that waits for an approval. Returns its session, itself and the approval."""
    session = await harness.create_test_session(env.stubs, agent="asker")
    turn = await harness.send_message_to_session(env.stubs, session, text, **fields)
    return session, turn, await harness.wait_for_approval(env.stubs, session)


async def send_instead(stubs: harness.Stubs, session: str, text: str, **fields: Any) -> chat_pb2.Turn:
    return await harness.send_message_to_session(stubs, session, text, if_busy=WITHDRAW, **fields)


async def state_of(env: Environment, approval: approval_pb2.Approval) -> approval_pb2.ApprovalState.ValueType:
    return (await harness.get_approval(env.stubs, approval.approval_id)).state


async def check_refused(env: Environment, session: str, turn: chat_pb2.Turn, **metadata: str) -> None:
    """Asserts that a message is refused, that the metadata tells why, and that nothing was changed."""
    before = await harness.all_events(env.stubs, session)
    with refused("TURN_IN_PROGRESS") as refusal:
        await send_instead(env.stubs, session, "in its place")
    assert refusal.details.status == grpc.StatusCode.ABORTED
    assert dict(refusal.details.metadata).items() >= ({"turn_id": turn.turn_id} | metadata).items()
    assert await harness.all_events(env.stubs, session) == before


class TestInItsPlace:
    async def test_the_turn_is_over_and_the_model_reads_why_its_call_did_not_run(self, env: Environment) -> None:
        session, first, approval = await asking(env, "do replaced")
        turn = await send_instead(env.stubs, session, "something else")
        assert harness.answer_of(turn) == "You said: something else"
        ended = await harness.wait_for_turn(env.stubs, session, first.turn_id)
        assert (ended.state, list(ended.pending)) == (chat_pb2.TURN_STATE_CANCELLED, [])
        assert await state_of(env, approval) == WITHDRAWN
        assert transcript(env.model_requests("do replaced")[-1])[-4:] == [
            "user: do replaced",
            "call: act",
            f"tool: {SUPERSEDED_TEXT}",
            "user: something else",
        ]
        assert not env.tool_control.effects("replaced")
        with refused("APPROVAL_ALREADY_PROCESSED") as refusal:
            await harness.decide(env.stubs, approval)
        assert refusal.details.metadata["state"] == "WITHDRAWN"

    async def test_the_log_tells_it_in_one_step(self, env: Environment) -> None:
        session, first, approval = await asking(env, "both told")
        turn = await send_instead(env.stubs, session, "never mind")
        events = await harness.all_events(env.stubs, session)
        start = next(event.sequence for event in events if event.turn_id == turn.turn_id) - 1
        assert [(event.WhichOneof("payload"), event.turn_id) for event in events[start : start + 7]] == [
            ("message_received", turn.turn_id),
            ("approval_withdrawn", first.turn_id),
            ("approval_withdrawn", first.turn_id),
            ("tool_returned", first.turn_id),
            ("tool_returned", first.turn_id),
            ("turn_cancelled", first.turn_id),
            ("turn_started", turn.turn_id),
        ]
        cancelled = events[start + 5].turn_cancelled
        assert (cancelled.reason, cancelled.principal) == (event_pb2.CANCEL_REASON_SUPERSEDED, approval.requester)
        results = [event.tool_returned for event in events if event.HasField("tool_returned")]
        assert {(result.outcome, result.started) for result in results} == {(event_pb2.TOOL_OUTCOME_CANCELLED, False)}

    async def test_into_an_idle_session_it_is_a_message_as_any(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        assert harness.answer_of(await send_instead(env.stubs, session, "hello")) == "You said: hello"

    async def test_it_goes_before_those_that_wait(self, env: Environment) -> None:
        session, _, _ = await asking(env, "do queued")
        waiting = await harness.send_message_to_session(env.stubs, session, "patient", wait=0, if_busy=ENQUEUE)
        urgent = await send_instead(env.stubs, session, "urgent", wait=0)
        await harness.wait_for_turn(env.stubs, session, waiting.turn_id)
        events = await harness.all_events(env.stubs, session)
        order = [event.turn_id for event in events if event.HasField("turn_completed")]
        assert order == [urgent.turn_id, waiting.turn_id]

    async def test_as_a_stream(self, env: Environment) -> None:
        session, _, approval = await asking(env, "do streamed")
        request = chat_pb2.StreamMessageRequest(
            session_id=session,
            request_id=harness.new_request_id(),
            content=harness.text_parts("by stream"),
            if_busy=WITHDRAW,
        )
        responses = [response async for response in env.stubs.chat.StreamMessage(request)]
        assert harness.answer_of(responses[-1].turn) == "You said: by stream"
        assert await state_of(env, approval) == WITHDRAWN

    async def test_a_repeat_is_the_same_turn_and_withdraws_nothing_more(self, env: Environment) -> None:
        session, _, _ = await asking(env, "do once")
        sent = [send_instead(env.stubs, session, "do twice", request_id="again") for _ in range(3)]
        turns = await asyncio.gather(*sent)
        assert len({turn.turn_id for turn in turns}) == 1
        second = await harness.wait_for_approval(env.stubs, session)
        again = await send_instead(env.stubs, session, "do twice", request_id="again")
        assert again.turn_id == second.turn_id
        assert await state_of(env, second) == PENDING, "the repeat would have withdrawn its own turn's question"
        with refused("REQUEST_ID_REUSED"):
            await harness.send_message_to_session(env.stubs, session, "do twice", request_id="again", if_busy=ENQUEUE)


class TestRefused:
    async def test_while_the_model_writes(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, "stall for long", wait=0)
        await until_event(env.stubs, session, "content_delta")
        await check_refused(env, session, turn, state="RUNNING")

    async def test_while_a_call_of_the_turn_runs(self, env: Environment) -> None:
        session, turn, approval = await asking(env, "beside running", wait=0)
        await env.tool_control.started("running")
        await check_refused(env, session, turn, state="RUNNING", tool="hold_reading")
        assert await state_of(env, approval) == PENDING
        env.tool_control.release("running")
        await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        await send_instead(env.stubs, session, "after its result")
        assert await state_of(env, approval) == WITHDRAWN

    async def test_while_the_client_may_run_a_call_of_the_turn(self, env: Environment) -> None:
        session, turn, approval = await asking(env, "mine looked", client_tools=[LOOK])
        assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        await check_refused(env, session, turn, state="AWAITING_APPROVAL", tool="look")
        look = next(item.tool_call_id for item in turn.pending if item.tool == "look")
        await env.stubs.chat.SubmitToolResult(
            chat_pb2.SubmitToolResultRequest(session_id=session, tool_call_id=look, result_json='"seen"')
        )
        await send_instead(env.stubs, session, "after its result")
        assert await state_of(env, approval) == WITHDRAWN

    async def test_while_the_outcome_of_a_call_is_unknown(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="impatient")
        turn = await harness.send_message_to_session(env.stubs, session, "lose track", wait=0)
        await env.tool_control.started("track")
        approval = await question(env, turn)
        await check_refused(env, session, turn, state="AWAITING_OUTCOME", tool="hold_irreversible")
        assert await state_of(env, approval) == PENDING
        env.tool_control.release("track")

    async def test_a_call_that_was_approved_first_runs(self, env: Environment) -> None:
        session, turn, approval = await asking(env, "do approved")
        await harness.decide(env.stubs, approval)
        outcome = await reason_of(send_instead(env.stubs, session, "too late"))
        assert outcome in ("OK", "TURN_IN_PROGRESS")
        assert (await harness.wait_for_turn(env.stubs, session, turn.turn_id)).state == chat_pb2.TURN_STATE_COMPLETED
        assert len(env.tool_control.effects("approved")) == 1


class TestRaces:
    """I6, I7, I12: with another call at the same moment the approval leaves PENDING once, and all agree on how."""

    async def _check(self, env: Environment, turn: chat_pb2.Turn, approval: approval_pb2.Approval, label: str) -> str:
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        events = await harness.all_events(env.stubs, turn.session_id)
        of_turn = [event for event in events if event.turn_id == turn.turn_id]
        left = [kind for kind in harness.kinds(of_turn) if kind in LEFT]
        (result,) = [event.tool_returned for event in of_turn if event.HasField("tool_returned")]
        assert len(env.tool_control.effects(label)) == int(result.started)
        state = approval_pb2.ApprovalState.Name(await state_of(env, approval)).removeprefix("APPROVAL_STATE_")
        assert left == {
            "APPROVED": ["approval_decided"],
            "EXPIRED": ["approval_expired"],
            "WITHDRAWN": ["approval_withdrawn"],
        }.get(state)
        assert result.started == (state == "APPROVED")
        assert (ended.state == chat_pb2.TURN_STATE_CANCELLED) == (state == "WITHDRAWN")
        return state

    async def test_a_decision(self, env: Environment) -> None:
        states = set()
        async with env.another() as other:
            for number in range(10):
                _, turn, approval = await asking(env, f"do raced-{number}")
                calls: list[Awaitable[Any]] = [
                    harness.decide(env.stubs, approval),
                    send_instead(other, turn.session_id, "instead"),
                ]
                outcomes = await asyncio.gather(*(reason_of(call) for call in calls[:: 1 if number % 2 else -1]))
                decided, sent = outcomes[:: 1 if number % 2 else -1]
                state = await self._check(env, turn, approval, f"raced-{number}")
                assert (decided == "OK") == (state == "APPROVED")
                assert sent in ("OK", "TURN_IN_PROGRESS")
                states.add(state)
        assert states <= {"APPROVED", "WITHDRAWN"}

    async def test_its_expiry(self, env: Environment) -> None:
        async with env.another(**SWEEPING) as other:
            for number in range(10):
                _, turn, approval = await asking(env, f"do lapsed-{number}")
                await expires(env, approval, timedelta(milliseconds=4 * number - 8))
                assert await reason_of(send_instead(env.stubs, turn.session_id, "instead")) in (
                    "OK",
                    "TURN_IN_PROGRESS",
                )
                await harness.wait_for_turn(other, turn.session_id, turn.turn_id)
                assert await self._check(env, turn, approval, f"lapsed-{number}") in ("EXPIRED", "WITHDRAWN")

    async def test_a_cancellation(self, env: Environment) -> None:
        async with env.another() as other:
            for number in range(6):
                _, turn, approval = await asking(env, f"do cancelled-{number}")
                cancel = chat_pb2.CancelTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
                outcomes = await asyncio.gather(
                    reason_of(send_instead(env.stubs, turn.session_id, "instead")),
                    reason_of(other.chat.CancelTurn(cancel)),
                )
                assert list(outcomes) == ["OK", "OK"]
                assert await self._check(env, turn, approval, f"cancelled-{number}") == "WITHDRAWN"

    async def test_another_message_of_the_kind(self, env: Environment) -> None:
        async with env.another() as other:
            for number in range(6):
                _, turn, approval = await asking(env, f"do doubled-{number}")
                outcomes = await asyncio.gather(
                    *(reason_of(send_instead(stubs, turn.session_id, "instead")) for stubs in (env.stubs, other))
                )
                assert "OK" in outcomes
                assert set(outcomes) <= {"OK", "TURN_IN_PROGRESS"}
                assert await self._check(env, turn, approval, f"doubled-{number}") == "WITHDRAWN"
