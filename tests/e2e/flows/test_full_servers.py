"""A server at its limit of turns: accepted messages wait for room, there or on another server."""

import pytest

from tests import harness
from tests.e2e.support.environment import Environment, transcript, until_event
from turnkeeper.pb.v1 import chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"concurrency": 1}
SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
match = '^ask (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^broken'
fail = "bad_request"
times = 1

[[reply]]
text = "You said: {user}"
"""


async def full(env: Environment, label: str) -> tuple[str, chat_pb2.Turn]:
    """Fills the server's only place until the tool is released."""
    session = await harness.create_test_session(env.stubs, agent="worker")
    turn = await harness.send_message_to_session(env.stubs, session, f"hold {label}", wait=0)
    await env.tool_control.started(label)
    return session, turn


class TestFullServer:
    async def test_a_message_is_accepted_and_runs_once_there_is_room(self, env: Environment) -> None:
        busy, first = await full(env, "room")
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "when there is room", wait=0)
        assert turn.state == chat_pb2.TURN_STATE_PENDING
        assert not env.model_requests("when there is room")
        env.tool_control.release("room")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "You said: when there is room"
        kinds = harness.kinds(await harness.all_events(env.stubs, session))
        assert kinds[1:] == [
            "message_received",
            "session_activated",
            "turn_started",
            "message_completed",
            "turn_completed",
        ]
        await harness.wait_for_turn(env.stubs, busy, first.turn_id)

    async def test_another_server_takes_it(self, env: Environment) -> None:
        await full(env, "elsewhere")
        session = await harness.create_test_session(env.stubs, agent="talker")
        async with env.another() as other:
            turn = await harness.send_message_to_session(env.stubs, session, "anybody?", wait=0)
            ended = await harness.wait_for_turn(other, session, turn.turn_id)
            assert harness.answer_of(ended) == "You said: anybody?"
        env.tool_control.release("elsewhere")

    async def test_a_turn_that_waits_for_room_can_be_cancelled(self, env: Environment) -> None:
        await full(env, "cancelling")
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "never mind", wait=0)
        response = await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        assert response.turn.state == chat_pb2.TURN_STATE_CANCELLED
        env.tool_control.release("cancelling")
        after = await harness.send_message_to_session(env.stubs, session, "after all")
        assert harness.answer_of(after) == "You said: after all"
        assert transcript(env.model_requests("after all")[-1])[1:] == ["user: never mind", "user: after all"]

    async def test_a_turn_that_waits_for_room_can_be_interrupted(self, env: Environment) -> None:
        await full(env, "interrupting")
        session = await harness.create_test_session(env.stubs, agent="talker")
        first = await harness.send_message_to_session(env.stubs, session, "one", wait=0)
        second = await harness.send_message_to_session(
            env.stubs, session, "two", wait=0, if_busy=chat_pb2.IF_BUSY_INTERRUPT
        )
        env.tool_control.release("interrupting")
        ended = await harness.wait_for_turn(env.stubs, session, second.turn_id)
        assert harness.answer_of(ended) == "You said: two"
        before = await harness.wait_for_turn(env.stubs, session, first.turn_id)
        assert before.state == chat_pb2.TURN_STATE_CANCELLED

    async def test_a_retry_waits_for_room(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "broken", wait=0)
        failed = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert failed.state == chat_pb2.TURN_STATE_FAILED
        await full(env, "retrying")
        retried = await env.stubs.chat.RetryTurn(
            chat_pb2.RetryTurnRequest(session_id=session, turn_id=turn.turn_id, request_id="again")
        )
        assert retried.turn.state == chat_pb2.TURN_STATE_PENDING
        env.tool_control.release("retrying")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "You said: broken"
        assert ended.attempt > failed.attempt

    async def test_turns_that_wait_for_people_take_no_room(self, env: Environment) -> None:
        waiting = []
        for number in range(3):
            session = await harness.create_test_session(env.stubs, agent="asker")
            turn = await harness.send_message_to_session(env.stubs, session, f"ask place{number}")
            assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
            waiting.append((session, turn.turn_id))
        for session, turn_id in waiting:
            await harness.decide(env.stubs, await harness.wait_for_approval(env.stubs, session))
            ended = await harness.wait_for_turn(env.stubs, session, turn_id)
            assert ended.state == chat_pb2.TURN_STATE_COMPLETED

    async def test_a_stream_of_a_turn_that_waits_sees_all_of_it(self, env: Environment) -> None:
        await full(env, "streaming")
        session = await harness.create_test_session(env.stubs, agent="talker")
        stream = env.stubs.chat.StreamMessage(
            chat_pb2.StreamMessageRequest(
                session_id=session, request_id="patient", content=harness.text_parts("streamed later")
            )
        )
        await until_event(env.stubs, session, "message_received")
        env.tool_control.release("streaming")
        events: list[event_pb2.Event] = []
        async for response in stream:
            events.extend(response.events)
        text = "".join(event.content_delta.text for event in events if event.HasField("content_delta"))
        assert text == "You said: streamed later"
        assert harness.kinds(events)[-1] == "turn_completed"
