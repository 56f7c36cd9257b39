"""Conversations: the messages sent, what the model gets of them, what a caller reads afterwards."""

import pytest
from google.protobuf.duration_pb2 import Duration

from tests import harness
from tests.e2e.support.environment import Environment, transcript
from turnkeeper.pb.v1 import chat_pb2, event_pb2, message_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """
[[reply]]
match = "long"
text = "It has no end because the limit"
finish_reason = "length"

[[reply]]
match = "count"
text = "Turn {turn}."
usage = { input_tokens = 100, output_tokens = 7 }

[[reply]]
match = "^silent"
fail = "slow_first_token"

[[reply]]
match = "slow"
text = "A slow answer."
chunk = 2
delay = "5ms"

[[reply]]
text = "You said: {user}"
"""


class TestConversationFlow:
    async def test_the_model_gets_all_earlier_messages_in_order(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        for words in ("apples", "and apples with pears", "apples — и груши 🍐"):
            turn = await harness.send_message_to_session(env.stubs, session, words)
            assert turn.state == chat_pb2.TURN_STATE_COMPLETED
            assert harness.answer_of(turn) == f"You said: {words}"
        assert transcript(env.model_requests("apples")[-1]) == [
            "system: You are a talker.",
            "user: apples",
            "assistant: You said: apples",
            "user: and apples with pears",
            "assistant: You said: and apples with pears",
            "user: apples — и груши 🍐",
        ]

    async def test_a_caller_reads_the_conversation_as_the_model_would(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turns = [await harness.send_message_to_session(env.stubs, session, words) for words in ("plums", "figs")]
        listed = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
        assert [(message.role, message.content[0].text, message.turn_id) for message in listed.messages] == [
            (message_pb2.ROLE_USER, "plums", turns[0].turn_id),
            (message_pb2.ROLE_ASSISTANT, "You said: plums", turns[0].turn_id),
            (message_pb2.ROLE_USER, "figs", turns[1].turn_id),
            (message_pb2.ROLE_ASSISTANT, "You said: figs", turns[1].turn_id),
        ]
        newest = await env.stubs.sessions.ListMessages(
            session_pb2.ListMessagesRequest(session_id=session, order_by="sequence desc", page_size=1)
        )
        assert newest.messages[0] == listed.messages[-1]
        assert newest.next_page_token

    async def test_one_call_from_nothing_to_a_first_answer(self, env: Environment) -> None:
        request = chat_pb2.SendMessageRequest(
            request_id=harness.new_request_id(),
            content=harness.text_parts("hello from   nowhere"),
            create_session=chat_pb2.CreateSessionParams(agent="talker", labels={"team": "blue"}),
        )
        response = await env.stubs.chat.SendMessage(request)
        assert harness.answer_of(response.turn) == "You said: hello from   nowhere"
        created = await env.stubs.sessions.GetSession(
            session_pb2.GetSessionRequest(session_id=response.turn.session_id)
        )
        assert created.session.title == "hello from nowhere"
        assert created.session.labels == {"team": "blue"}
        assert created.session.state == session_pb2.SESSION_STATE_ACTIVE

    async def test_what_turns_used_adds_up_to_what_the_session_used(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        first = await harness.send_message_to_session(env.stubs, session, "count")
        await harness.send_message_to_session(env.stubs, session, "count again")
        assert (first.usage.input_tokens, first.usage.output_tokens, first.usage.model_calls) == (100, 7, 1)
        response = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        usage = response.session.usage
        assert (usage.input_tokens, usage.output_tokens, usage.model_calls) == (200, 14, 2)

    async def test_an_answer_at_the_output_limit_has_that_finish_reason(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "long")
        assert turn.state == chat_pb2.TURN_STATE_COMPLETED
        assert turn.stop_reason == event_pb2.STOP_REASON_LENGTH

    async def test_a_message_accepted_at_once_is_read_later(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        accepted = await harness.send_message_to_session(env.stubs, session, "slow", wait=0)
        assert accepted.state in (chat_pb2.TURN_STATE_PENDING, chat_pb2.TURN_STATE_RUNNING)
        ended = await harness.wait_for_turn(env.stubs, session, accepted.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert harness.answer_of(ended) == "A slow answer."

    async def test_a_wait_ends_before_the_callers_deadline(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        request = chat_pb2.SendMessageRequest(
            session_id=session, request_id=harness.new_request_id(), content=harness.text_parts("silent")
        )
        response = await env.stubs.chat.SendMessage(request, timeout=1.5)
        assert response.turn.state == chat_pb2.TURN_STATE_RUNNING
        get = chat_pb2.GetTurnRequest(session_id=session, turn_id=response.turn.turn_id, wait=Duration(seconds=60))
        assert (await env.stubs.chat.GetTurn(get, timeout=1)).turn.state == chat_pb2.TURN_STATE_RUNNING

    async def test_the_limits_of_a_request_reach_the_model(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        await harness.send_message_to_session(
            env.stubs,
            session,
            "be short about quinces",
            limits=chat_pb2.TurnLimits(max_output_tokens=17),
            response_schema_json='{"type":"object"}',
        )
        bodies = [exchange.body for exchange in env.model.exchanges.all() if b"about quinces" in exchange.body]
        assert b'"max_tokens":17' in bodies[0].replace(b" ", b"")
        assert b'"json_schema"' in bodies[0]
