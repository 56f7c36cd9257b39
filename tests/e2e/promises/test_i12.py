"""Promise I12: after CANCELLED no further tool starts, and one that had started is reported as such.

A turn is cancelled at each of its steps, by CancelTurn; its messages and results until then are kept and paired.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests import harness
from tests.e2e.support.environment import Environment, transcript, until_event
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2, event_pb2, message_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = "^silent"
fail = "slow_first_token"

[[reply]]
match = "^stall"
text = "Once upon a time there was"
chunk = 5
fail = "stall"
fail_after = 2

[[reply]]
match = "^busy"
fail = "server_error"

[[reply]]
match = "^limited"
fail = "rate_limit"
retry_after = 60

[[reply]]
match = '^tools (?P<label>\S+)'
tool_calls = [
    { name = "hold_irreversible", arguments = { label = "{label}-1" } },
    { name = "hold_irreversible", arguments = { label = "{label}-2" } },
    { name = "act", arguments = { label = "{label}-3" } },
]

[[reply]]
match = '^do (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
CANCELLED = chat_pb2.TURN_STATE_CANCELLED
Reached = Callable[[Environment, str, chat_pb2.Turn], Awaitable[object]]


async def cancel(stubs: harness.Stubs, session: str, turn_id: str) -> chat_pb2.CancelTurnResponse:
    return await stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))


async def cancelled_at(
    env: Environment, message: str, reached: Reached, *, agent: str, other: harness.Stubs | None = None
) -> tuple[str, list[event_pb2.Event]]:
    """Sends a message, cancels its turn at this step, and checks the session's next turn. Returns its id and log."""
    session = await harness.create_test_session(env.stubs, agent=agent)
    turn = await harness.send_message_to_session(env.stubs, session, message, wait=0)
    await reached(env, session, turn)
    response = await cancel(other or env.stubs, session, turn.turn_id)
    assert response.turn.state == CANCELLED
    events = await harness.all_events(env.stubs, session)
    assert events[response.sequence - 1].turn_cancelled.reason == event_pb2.CANCEL_REASON_REQUESTED
    assert harness.kinds(events).count("turn_cancelled") == 1
    again = await cancel(env.stubs, session, turn.turn_id)
    assert (again.turn.state, again.sequence, again.cursor) == (CANCELLED, response.sequence, response.cursor)
    after = await harness.send_message_to_session(env.stubs, session, "and now?")
    assert harness.answer_of(after) == "You said: and now?"
    return session, events


async def speaking(env: Environment, session: str, turn: chat_pb2.Turn) -> None:
    await until_event(env.stubs, session, "content_delta")


async def backing_off(env: Environment, session: str, turn: chat_pb2.Turn) -> None:
    await until_event(env.stubs, session, "attempt_failed")


async def asking(env: Environment, session: str, turn: chat_pb2.Turn) -> None:
    await until_event(env.stubs, session, "approval_requested")


class TestI12CancelledAtEveryStep:
    async def test_i12_right_after_it_was_accepted(self, env: Environment) -> None:
        async def at_once(env: Environment, session: str, turn: chat_pb2.Turn) -> None:
            pass

        for _ in range(5):
            await cancelled_at(env, "silent from the start", at_once, agent="talker")

    async def test_i12_before_the_first_token(self, env: Environment) -> None:
        async def requested(env: Environment, session: str, turn: chat_pb2.Turn) -> None:
            await env.wait_for_model_requests("silent as a stone")

        _, events = await cancelled_at(env, "silent as a stone", requested, agent="talker")
        assert "message_completed" not in harness.kinds(events)

    async def test_i12_in_mid_message(self, env: Environment) -> None:
        _, events = await cancelled_at(env, "stall in the middle", speaking, agent="talker")
        partial = next(event.message_completed for event in events if event.HasField("message_completed"))
        assert partial.finish_reason == message_pb2.FINISH_REASON_INTERRUPTED
        kept = partial.content[0].text
        assert transcript(env.model_requests("stall in the middle")[-1])[1:] == [
            "user: stall in the middle",
            f"assistant: {kept}",
            "user: and now?",
        ]

    async def test_i12_while_it_backs_off_with_the_lease(self, env: Environment) -> None:
        _, events = await cancelled_at(env, "busy line", backing_off, agent="stubborn")
        assert harness.kinds(events).count("attempt_failed") == 1
        assert len(env.model_requests("busy line")) == 2, "the one that failed, and the next message's"

    async def test_i12_while_it_backs_off_without_the_lease(self, env: Environment) -> None:
        async def released(env: Environment, session: str, turn: chat_pb2.Turn) -> None:
            await backing_off(env, session, turn)
            response = await env.stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=session, turn_id=turn.turn_id))
            assert response.turn.state == chat_pb2.TURN_STATE_BACKING_OFF

        await cancelled_at(env, "limited line", released, agent="stubborn")

    async def test_i12_while_a_tool_runs_no_other_one_starts(self, env: Environment) -> None:
        async def running(env: Environment, session: str, turn: chat_pb2.Turn) -> None:
            await env.tool_control.started("cancelled-1")
            await env.tool_control.started("cancelled-2")

        _, events = await cancelled_at(env, "tools cancelled", running, agent="worker")
        for label in ("cancelled-1", "cancelled-2"):
            env.tool_control.release(label)
        returned = [event.tool_returned for event in events if event.HasField("tool_returned")]
        assert [(result.outcome, result.started) for result in returned] == [
            (event_pb2.TOOL_OUTCOME_CANCELLED, True),
            (event_pb2.TOOL_OUTCOME_CANCELLED, True),
            (event_pb2.TOOL_OUTCOME_CANCELLED, False),
        ]
        assert not env.tool_control.effects("cancelled-3")

    async def test_i12_while_it_waits_for_an_approval(self, env: Environment) -> None:
        _, events = await cancelled_at(env, "do unapproved", asking, agent="asker")
        assert harness.kinds(events)[-3:] == ["approval_withdrawn", "tool_returned", "turn_cancelled"]
        approval_id = next(
            event.approval_requested.approval_id for event in events if event.HasField("approval_requested")
        )
        approval = await harness.get_approval(env.stubs, approval_id)
        with refused("APPROVAL_ALREADY_PROCESSED"):
            await harness.decide(env.stubs, approval)
        assert not env.tool_control.effects("unapproved")

    async def test_i12_in_the_queue(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        first = await harness.send_message_to_session(env.stubs, session, "silent before it", wait=0)
        queued = await harness.send_message_to_session(
            env.stubs, session, "do not run", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )
        response = await cancel(env.stubs, session, queued.turn_id)
        assert response.turn.state == CANCELLED
        await cancel(env.stubs, session, first.turn_id)
        assert not env.model_requests("do not run")

    async def test_i12_a_cancellation_at_another_server_than_the_owner(self, env: Environment) -> None:
        async def running(env: Environment, session: str, turn: chat_pb2.Turn) -> None:
            await env.tool_control.started("elsewhere-1")

        async with env.another() as other:
            await cancelled_at(env, "tools elsewhere", running, agent="worker", other=other)
        for label in ("elsewhere-1", "elsewhere-2"):
            env.tool_control.release(label)
        assert not env.tool_control.effects("elsewhere-3")

    async def test_i12_after_it_has_ended_it_stays_as_it_ended(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "done before")
        response = await cancel(env.stubs, session, turn.turn_id)
        assert response.turn.state == chat_pb2.TURN_STATE_COMPLETED
        assert response.sequence == 0
        assert "turn_cancelled" not in harness.kinds(await harness.all_events(env.stubs, session))

    async def test_i12_racing_with_the_start_of_a_tool(self, env: Environment) -> None:
        """In either order: a call that started is reported as started, and one that did not has no effect."""
        for number in range(12):
            session = await harness.create_test_session(env.stubs, agent="worker")
            turn = await harness.send_message_to_session(env.stubs, session, f"do race-{number}", wait=0)
            await asyncio.sleep(0.003 * number)
            response = await cancel(env.stubs, session, turn.turn_id)
            assert response.turn.state in (CANCELLED, chat_pb2.TURN_STATE_COMPLETED)
            events = await harness.all_events(env.stubs, session)
            returned = [event.tool_returned for event in events if event.HasField("tool_returned")]
            started = [result for result in returned if result.started]
            assert len(env.tool_control.effects(f"race-{number}")) <= len(started)

    async def test_i12_racing_with_the_request_for_an_approval(self, env: Environment) -> None:
        """The owner releases the turn just when it is cancelled: the cancellation is not lost."""
        for number in range(12):
            session = await harness.create_test_session(env.stubs, agent="asker")
            turn = await harness.send_message_to_session(env.stubs, session, f"do letting-go-{number}", wait=0)
            await asyncio.sleep(0.003 * number)
            async with asyncio.timeout(4):
                response = await cancel(env.stubs, session, turn.turn_id)
            assert response.turn.state == CANCELLED
            assert not env.tool_control.effects(f"letting-go-{number}")


class TestRetryAfterCancelled:
    async def test_i12_a_retry_is_what_starts_tools_again(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, "do again")
        await cancel(env.stubs, session, turn.turn_id)
        await harness.retry(env.stubs, session, turn.turn_id)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert not env.tool_control.effects("again"), "the model got the cancelled call's result, and answered"
