"""Promise I12: after CANCELLED no further tool starts, and one that had started is reported as such.

A turn is cancelled at each of its steps, by CancelTurn; what was said and done until then is kept and paired.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests import harness
from tests.e2e.world import World, said, until_event
from tests.problems import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, message_pb2

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
Reached = Callable[[World, str, chat_pb2.Turn], Awaitable[object]]


async def cancel(stubs: harness.Stubs, session: str, turn_id: str) -> chat_pb2.CancelTurnResponse:
    return await stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))


async def cancelled_at(
    world: World, message: str, reached: Reached, *, agent: str, elsewhere: harness.Stubs | None = None
) -> tuple[str, list[event_pb2.Event]]:
    """Send, wait for the step, cancel; the session and its log. The session goes on working."""
    session = await harness.create_test_session(world.stubs, agent=agent)
    turn = await harness.send_message_to_session(world.stubs, session, message, wait=0)
    await reached(world, session, turn)
    response = await cancel(elsewhere or world.stubs, session, turn.turn_id)
    assert response.turn.state == CANCELLED
    events = await harness.all_events(world.stubs, session)
    assert events[response.sequence - 1].turn_cancelled.reason == event_pb2.CANCEL_REASON_REQUESTED
    assert harness.kinds(events).count("turn_cancelled") == 1
    again = await cancel(world.stubs, session, turn.turn_id)
    assert (again.turn.state, again.sequence, again.cursor) == (CANCELLED, response.sequence, response.cursor)
    after = await harness.send_message_to_session(world.stubs, session, "and now?")
    assert harness.answer_of(after) == "You said: and now?"
    return session, events


async def speaking(world: World, session: str, turn: chat_pb2.Turn) -> None:
    await until_event(world.stubs, session, "content_delta")


async def backing_off(world: World, session: str, turn: chat_pb2.Turn) -> None:
    await until_event(world.stubs, session, "attempt_failed")


async def asking(world: World, session: str, turn: chat_pb2.Turn) -> None:
    await until_event(world.stubs, session, "approval_requested")


class TestI12CancelledAtEveryStep:
    async def test_i12_right_after_it_was_accepted(self, world: World) -> None:
        async def at_once(world: World, session: str, turn: chat_pb2.Turn) -> None:
            pass

        for _ in range(5):
            await cancelled_at(world, "silent from the start", at_once, agent="talker")

    async def test_i12_before_the_first_token(self, world: World) -> None:
        async def asked(world: World, session: str, turn: chat_pb2.Turn) -> None:
            await world.until_heard("silent as a stone")

        _, events = await cancelled_at(world, "silent as a stone", asked, agent="talker")
        assert "message_completed" not in harness.kinds(events)

    async def test_i12_in_mid_message(self, world: World) -> None:
        _, events = await cancelled_at(world, "stall in the middle", speaking, agent="talker")
        partial = next(event.message_completed for event in events if event.HasField("message_completed"))
        assert partial.finish_reason == message_pb2.FINISH_REASON_INTERRUPTED
        kept = partial.content[0].text
        assert said(world.heard("stall in the middle")[-1])[1:] == [
            "user: stall in the middle",
            f"assistant: {kept}",
            "user: and now?",
        ]

    async def test_i12_while_it_backs_off_with_the_lease(self, world: World) -> None:
        _, events = await cancelled_at(world, "busy line", backing_off, agent="stubborn")
        assert harness.kinds(events).count("attempt_failed") == 1
        assert len(world.heard("busy line")) == 2, "the one that failed, and the next message's"

    async def test_i12_while_it_backs_off_without_the_lease(self, world: World) -> None:
        async def released(world: World, session: str, turn: chat_pb2.Turn) -> None:
            await backing_off(world, session, turn)
            found = await world.stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=session, turn_id=turn.turn_id))
            assert found.turn.state == chat_pb2.TURN_STATE_BACKING_OFF

        await cancelled_at(world, "limited line", released, agent="stubborn")

    async def test_i12_while_a_tool_runs_no_other_one_starts(self, world: World) -> None:
        async def running(world: World, session: str, turn: chat_pb2.Turn) -> None:
            await world.workshop.started("cancelled-1")
            await world.workshop.started("cancelled-2")

        _, events = await cancelled_at(world, "tools cancelled", running, agent="worker")
        for label in ("cancelled-1", "cancelled-2"):
            world.workshop.release(label)
        returned = [event.tool_returned for event in events if event.HasField("tool_returned")]
        assert [(result.outcome, result.started) for result in returned] == [
            (event_pb2.TOOL_OUTCOME_CANCELLED, True),
            (event_pb2.TOOL_OUTCOME_CANCELLED, True),
            (event_pb2.TOOL_OUTCOME_CANCELLED, False),
        ]
        assert not world.workshop.effects("cancelled-3")

    async def test_i12_while_it_waits_for_an_approval(self, world: World) -> None:
        _, events = await cancelled_at(world, "do unapproved", asking, agent="asker")
        assert harness.kinds(events)[-3:] == ["approval_withdrawn", "tool_returned", "turn_cancelled"]
        approval_id = next(
            event.approval_requested.approval_id for event in events if event.HasField("approval_requested")
        )
        found = await world.stubs.approvals.GetApproval(approval_pb2.GetApprovalRequest(approval_id=approval_id))
        with refused("APPROVAL_ALREADY_PROCESSED"):
            await harness.decide(world.stubs, found.approval)
        assert not world.workshop.effects("unapproved")

    async def test_i12_in_the_queue(self, world: World) -> None:
        session = await harness.create_test_session(world.stubs, agent="talker")
        first = await harness.send_message_to_session(world.stubs, session, "silent before it", wait=0)
        queued = await harness.send_message_to_session(
            world.stubs, session, "do not run", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )
        response = await cancel(world.stubs, session, queued.turn_id)
        assert response.turn.state == CANCELLED
        await cancel(world.stubs, session, first.turn_id)
        assert not world.heard("do not run")

    async def test_i12_asked_of_another_server_than_the_one_that_runs_it(self, world: World) -> None:
        async def running(world: World, session: str, turn: chat_pb2.Turn) -> None:
            await world.workshop.started("elsewhere-1")

        async with world.another() as elsewhere:
            await cancelled_at(world, "tools elsewhere", running, agent="worker", elsewhere=elsewhere)
        for label in ("elsewhere-1", "elsewhere-2"):
            world.workshop.release(label)
        assert not world.workshop.effects("elsewhere-3")

    async def test_i12_after_it_has_ended_it_stays_as_it_ended(self, world: World) -> None:
        session = await harness.create_test_session(world.stubs, agent="talker")
        turn = await harness.send_message_to_session(world.stubs, session, "done before")
        response = await cancel(world.stubs, session, turn.turn_id)
        assert response.turn.state == chat_pb2.TURN_STATE_COMPLETED
        assert response.sequence == 0
        assert "turn_cancelled" not in harness.kinds(await harness.all_events(world.stubs, session))

    async def test_i12_racing_with_the_start_of_a_tool(self, world: World) -> None:
        """Whoever wins: a call that started is reported as started, and one that did not has no effect."""
        for number in range(12):
            session = await harness.create_test_session(world.stubs, agent="worker")
            turn = await harness.send_message_to_session(world.stubs, session, f"do race-{number}", wait=0)
            await asyncio.sleep(0.003 * number)
            response = await cancel(world.stubs, session, turn.turn_id)
            assert response.turn.state in (CANCELLED, chat_pb2.TURN_STATE_COMPLETED)
            events = await harness.all_events(world.stubs, session)
            returned = [event.tool_returned for event in events if event.HasField("tool_returned")]
            started = [result for result in returned if result.started]
            assert len(world.workshop.effects(f"race-{number}")) <= len(started)

    async def test_i12_racing_with_the_request_for_an_approval(self, world: World) -> None:
        """The owner lets go of the turn just as it is asked to cancel it: the cancellation is not lost."""
        for number in range(12):
            session = await harness.create_test_session(world.stubs, agent="asker")
            turn = await harness.send_message_to_session(world.stubs, session, f"do letting-go-{number}", wait=0)
            await asyncio.sleep(0.003 * number)
            async with asyncio.timeout(4):
                response = await cancel(world.stubs, session, turn.turn_id)
            assert response.turn.state == CANCELLED
            assert not world.workshop.effects(f"letting-go-{number}")


class TestRetryAfterCancelled:
    async def test_i12_a_retry_is_what_starts_tools_again(self, world: World) -> None:
        session = await harness.create_test_session(world.stubs, agent="asker")
        turn = await harness.send_message_to_session(world.stubs, session, "do again")
        await cancel(world.stubs, session, turn.turn_id)
        await world.stubs.chat.RetryTurn(
            chat_pb2.RetryTurnRequest(session_id=session, turn_id=turn.turn_id, request_id=harness.new_request_id())
        )
        ended = await harness.wait_for_turn(world.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert not world.workshop.effects("again"), "the model was told that the call was cancelled, and answered"
