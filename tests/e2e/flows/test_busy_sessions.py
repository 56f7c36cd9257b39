"""What a message does while another turn has not ended: REJECT, ENQUEUE, INTERRUPT."""

import asyncio
from datetime import timedelta

import grpc
import pytest

from tests import harness
from tests.e2e.support.ask_script import ASK
from tests.e2e.support.environment import Environment, transcript, until_event
from tests.e2e.support.stream_reader import Reader, stream
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2, error_pb2, event_pb2, message_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = (
    r"""
[[reply]]
match = '^hold (?P<label>\w+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
match = "^hold"
after_tools = 1
text = "Then {tool_result}."

[[reply]]
match = "^stall"
text = "Once upon a time there was"
chunk = 5
fail = "stall"
fail_after = 2

"""
    + ASK
)
ENQUEUE, INTERRUPT = chat_pb2.IF_BUSY_ENQUEUE, chat_pb2.IF_BUSY_INTERRUPT


async def holding(env: Environment, label: str, *, agent: str = "worker") -> tuple[str, chat_pb2.Turn]:
    """Starts a turn that runs a tool until it is released. Returns its session."""
    session = await harness.create_test_session(env.stubs, agent=agent)
    turn = await harness.send_message_to_session(env.stubs, session, f"hold {label}", wait=0)
    await env.tool_control.started(label)
    return session, turn


class TestReject:
    async def test_a_message_is_refused_while_a_turn_runs_and_accepted_after_it(self, env: Environment) -> None:
        session, turn = await holding(env, "rejecting")
        with refused("TURN_IN_PROGRESS") as refusal:
            await harness.send_message_to_session(env.stubs, session, "too early")
        assert refusal.details.status == grpc.StatusCode.ABORTED
        assert refusal.details.metadata["turn_id"] == turn.turn_id
        env.tool_control.release("rejecting")
        await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        later = await harness.send_message_to_session(env.stubs, session, "in time")
        assert harness.answer_of(later) == "You said: in time"
        assert not env.model_requests("too early")

    async def test_a_turn_that_waits_for_an_approval_is_busy(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        await harness.send_message_to_session(env.stubs, session, "ask waiting")
        with refused("TURN_IN_PROGRESS"):
            await harness.send_message_to_session(env.stubs, session, "hello?")


class TestEnqueue:
    async def test_queued_messages_run_in_order_and_reach_the_model_in_the_order_of_their_turns(
        self, env: Environment
    ) -> None:
        session, first = await holding(env, "queueing")
        turns = [
            await harness.send_message_to_session(env.stubs, session, words, wait=0, if_busy=ENQUEUE)
            for words in ("second", "third")
        ]
        assert [turn.state for turn in turns] == [chat_pb2.TURN_STATE_PENDING] * 2
        response = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        assert (response.session.active_turn_id, response.session.queued_turns) == (first.turn_id, 2)
        env.tool_control.release("queueing")
        ended = [await harness.wait_for_turn(env.stubs, session, turn.turn_id) for turn in turns]
        assert [harness.answer_of(turn) for turn in ended] == ["You said: second", "You said: third"]
        assert transcript(env.model_requests("queueing")[-1]) == [
            "user: hold queueing",
            "call: hold_reading",
            "tool: queueing is done",
            "assistant: Then queueing is done.",
            "user: second",
            "assistant: You said: second",
            "user: third",
        ]
        events = await harness.all_events(env.stubs, session)
        assert [event.turn_queued.position for event in events if event.HasField("turn_queued")] == [1, 2]
        order = [event.turn_id for event in events if event.HasField("turn_completed")]
        assert order == [first.turn_id, *(turn.turn_id for turn in turns)]

    async def test_into_an_idle_session_it_runs_at_once(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "no one here", if_busy=ENQUEUE)
        assert harness.answer_of(turn) == "You said: no one here"
        assert "turn_queued" not in harness.kinds(await harness.all_events(env.stubs, session))

    async def test_a_queued_turn_that_is_cancelled_is_passed_over(self, env: Environment) -> None:
        session, first = await holding(env, "passing")
        left_out = await harness.send_message_to_session(env.stubs, session, "left out", wait=0, if_busy=ENQUEUE)
        kept = await harness.send_message_to_session(env.stubs, session, "kept", wait=0, if_busy=ENQUEUE)
        cancelled = await env.stubs.chat.CancelTurn(
            chat_pb2.CancelTurnRequest(session_id=session, turn_id=left_out.turn_id)
        )
        assert cancelled.turn.state == chat_pb2.TURN_STATE_CANCELLED
        env.tool_control.release("passing")
        ended = await harness.wait_for_turn(env.stubs, session, kept.turn_id)
        assert harness.answer_of(ended) == "You said: kept"
        assert not env.model_requests("left out")
        assert (await harness.wait_for_turn(env.stubs, session, first.turn_id)).state == chat_pb2.TURN_STATE_COMPLETED

    async def test_a_failed_turn_does_not_hold_up_the_queue(self, env: Environment) -> None:
        session, _ = await holding(env, "budget", agent="worker")
        limited = await harness.send_message_to_session(
            env.stubs,
            session,
            "hold budget",
            wait=0,
            if_busy=ENQUEUE,
            limits=chat_pb2.TurnLimits(max_iterations=1),
        )
        last = await harness.send_message_to_session(env.stubs, session, "after it", wait=0, if_busy=ENQUEUE)
        env.tool_control.release("budget")
        ended = await harness.wait_for_turn(env.stubs, session, last.turn_id)
        assert harness.answer_of(ended) == "You said: after it"
        failed = await harness.wait_for_turn(env.stubs, session, limited.turn_id)
        assert failed.state == chat_pb2.TURN_STATE_FAILED

    async def test_the_queue_holds_64_messages_and_no_more(self, env: Environment) -> None:
        session, _ = await holding(env, "filling")
        for number in range(64):
            await harness.send_message_to_session(env.stubs, session, f"number {number}", wait=0, if_busy=ENQUEUE)
        for if_busy in (ENQUEUE, INTERRUPT):
            with refused("QUOTA_EXCEEDED") as refusal:
                await harness.send_message_to_session(env.stubs, session, "one more", wait=0, if_busy=if_busy)
            assert refusal.details.status == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refusal.details.retry_after is not None
            assert "google.rpc.QuotaFailure" in refusal.details.types
            assert refusal.details.detail.retry == error_pb2.RETRY_ADVICE_SAME_CALL
        with refused("QUOTA_EXCEEDED") as refusal:
            async for _ in stream(env.stubs, session, "one more", Reader(), if_busy=ENQUEUE):
                pass
        assert refusal.details.detail.retry == error_pb2.RETRY_ADVICE_SAME_CALL, (
            "the caller decides, as on a unary call"
        )
        assert (refusal.details.retry_after, refusal.details.detail.cursor) == (timedelta(seconds=5), "")
        ended = await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
        assert ended.session.queued_turns == 0
        kinds = harness.kinds(await harness.all_events(env.stubs, session))
        assert kinds.count("turn_cancelled") == 65


class TestInterrupt:
    async def test_the_partial_answer_is_kept_and_the_new_message_comes_next(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        first = await harness.send_message_to_session(env.stubs, session, "stall the interrupted", wait=0)
        await until_event(env.stubs, session, "content_delta")
        turn = await harness.send_message_to_session(env.stubs, session, "stop that", if_busy=INTERRUPT)
        assert harness.answer_of(turn) == "You said: stop that"
        interrupted = await harness.wait_for_turn(env.stubs, session, first.turn_id)
        assert interrupted.state == chat_pb2.TURN_STATE_CANCELLED
        events = await harness.all_events(env.stubs, session)
        reasons = [event.turn_cancelled.reason for event in events if event.HasField("turn_cancelled")]
        assert reasons == [event_pb2.CANCEL_REASON_INTERRUPTED]
        partial = next(event.message_completed for event in events if event.HasField("message_completed"))
        assert partial.finish_reason == message_pb2.FINISH_REASON_INTERRUPTED
        kept = partial.content[0].text
        assert kept
        assert "Once upon a time there was".startswith(kept)
        assert transcript(env.model_requests("stall the interrupted")[-1])[1:] == [
            "user: stall the interrupted",
            f"assistant: {kept}",
            "user: stop that",
        ]

    async def test_while_a_tool_runs(self, env: Environment) -> None:
        session, first = await holding(env, "early")
        turn = await harness.send_message_to_session(env.stubs, session, "me first", if_busy=INTERRUPT)
        assert harness.answer_of(turn) == "You said: me first"
        assert (await harness.wait_for_turn(env.stubs, session, first.turn_id)).state == chat_pb2.TURN_STATE_CANCELLED
        assert transcript(env.model_requests("me first")[-1])[:3] == [
            "user: hold early",
            "call: hold_reading",
            "tool: The call was cancelled before its result was known.",
        ]

    async def test_a_turn_that_waits_for_an_approval_makes_room_at_once(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        first = await harness.send_message_to_session(env.stubs, session, "ask interrupted")
        turn = await harness.send_message_to_session(env.stubs, session, "never mind", if_busy=INTERRUPT)
        assert harness.answer_of(turn) == "You said: never mind"
        assert (await harness.wait_for_turn(env.stubs, session, first.turn_id)).state == chat_pb2.TURN_STATE_CANCELLED
        assert not env.tool_control.effects("interrupted")

    async def test_it_goes_before_those_that_wait(self, env: Environment) -> None:
        session, _ = await holding(env, "crowded")
        waiting = await harness.send_message_to_session(env.stubs, session, "patient", wait=0, if_busy=ENQUEUE)
        urgent = await harness.send_message_to_session(env.stubs, session, "urgent", wait=0, if_busy=INTERRUPT)
        await harness.wait_for_turn(env.stubs, session, waiting.turn_id)
        events = await harness.all_events(env.stubs, session)
        order = [event.turn_id for event in events if event.HasField("turn_completed")]
        assert order == [urgent.turn_id, waiting.turn_id]

    async def test_many_at_once_are_all_accepted_and_each_ends(self, env: Environment) -> None:
        session, _ = await holding(env, "stormy")
        sent = [
            harness.send_message_to_session(env.stubs, session, f"storm {number}", if_busy=INTERRUPT)
            for number in range(5)
        ]
        turns = await asyncio.gather(*sent)
        assert {turn.state for turn in turns} <= {chat_pb2.TURN_STATE_COMPLETED, chat_pb2.TURN_STATE_CANCELLED}
        assert chat_pb2.TURN_STATE_COMPLETED in {turn.state for turn in turns}
        response = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        assert (response.session.active_turn_id, response.session.queued_turns) == ("", 0)
