"""An agent with `max_concurrent_turns`: new messages are refused while it is busy, and what was accepted waits."""

import contextlib
from datetime import timedelta

import grpc
import pytest

from tests import harness
from tests.e2e.support.ask_script import ASK
from tests.e2e.support.environment import Environment
from tests.e2e.support.polling import eventually
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = (
    r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
match = "^hold"
after_tools = 1
text = "Then {tool_result}."

"""
    + ASK
)


async def holding(env: Environment, label: str) -> tuple[str, chat_pb2.SendMessageRequest]:
    """Fills the agent's only place until the tool is released. Returns the session and the request."""
    session = await harness.create_test_session(env.stubs, agent="lone")
    request = a_message(session, f"hold {label}")
    await env.stubs.chat.SendMessage(request)
    await env.tool_control.started(label)
    return session, request


def a_message(session: str, text: str) -> chat_pb2.SendMessageRequest:
    request = chat_pb2.SendMessageRequest(
        session_id=session, content=harness.text_parts(text), request_id=harness.new_request_id()
    )
    request.wait.FromSeconds(0)
    return request


async def accepted(env: Environment, request: chat_pb2.SendMessageRequest) -> chat_pb2.Turn:
    """The message's turn, at its end. The message is sent until the agent has a place: a turn has just ended."""

    async def send() -> chat_pb2.Turn | None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return (await env.stubs.chat.SendMessage(request)).turn
        return None

    turn = await eventually(send)
    return await harness.wait_for_turn(env.stubs, request.session_id, turn.turn_id)


async def test_a_new_message_to_a_busy_agent_is_refused_until_it_has_a_place(env: Environment) -> None:
    _, running = await holding(env, "first")
    other = await harness.create_test_session(env.stubs, agent="lone")
    message = a_message(other, "are you there?")
    with refused("AGENT_NOT_AVAILABLE") as refusal:
        await env.stubs.chat.SendMessage(message)
    assert refusal.details.status == grpc.StatusCode.UNAVAILABLE
    assert refusal.details.metadata["agent"] == "lone"
    assert refusal.details.retry_after == timedelta(seconds=1)
    assert (await env.stubs.chat.SendMessage(running)).turn.state == chat_pb2.TURN_STATE_RUNNING, "a repeat"
    first = a_message("", "a first message")
    first.create_session.agent = "lone"
    with refused("AGENT_NOT_AVAILABLE"):
        await env.stubs.chat.SendMessage(first)
    free = await harness.create_test_session(env.stubs, agent="talker")
    assert harness.answer_of(await harness.send_message_to_session(env.stubs, free, "hello")) == "You said: hello"
    env.tool_control.release("first")
    assert harness.answer_of(await accepted(env, message)) == "You said: are you there?"
    assert not env.model_requests("a first message")


async def test_a_message_in_the_queue_of_a_busy_session_waits(env: Environment) -> None:
    session, _ = await holding(env, "queue")
    queued = a_message(session, "and then")
    queued.if_busy = chat_pb2.IF_BUSY_ENQUEUE
    turn = (await env.stubs.chat.SendMessage(queued)).turn
    env.tool_control.release("queue")
    ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    assert harness.answer_of(ended) == "You said: and then"


async def test_a_turn_that_was_approved_waits_until_its_agent_has_a_place(env: Environment) -> None:
    asking = await harness.create_test_session(env.stubs, agent="lone")
    turn = await harness.send_message_to_session(env.stubs, asking, "ask no person")
    assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
    _, held = await holding(env, "approved")
    approval = await harness.wait_for_approval(env.stubs, asking)
    await harness.decide(env.stubs, approval)
    talking = await harness.create_test_session(env.stubs, agent="talker")
    for number in range(3):  # each looks for turns that are due
        await harness.send_message_to_session(env.stubs, talking, f"{number}")
    waiting = await env.stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=asking, turn_id=turn.turn_id))
    assert waiting.turn.state != chat_pb2.TURN_STATE_COMPLETED
    assert len(env.model_requests("ask no person")) == 1
    env.tool_control.release("approved")
    ended = await harness.wait_for_turn(env.stubs, asking, turn.turn_id)
    assert harness.answer_of(ended) == "Asked."
    assert held.session_id != asking
