"""Lists by pages, over gRPC: every item once, also while new ones arrive."""

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from tests import harness
from turnkeeper.pb.v1 import agent_pb2, chat_pb2, message_pb2, session_pb2

SCRIPT = """
[[reply]]
text = "You said: {user}"
"""


async def newest_first(stubs: harness.Stubs, session: str, token: str) -> session_pb2.ListMessagesResponse:
    return await stubs.sessions.ListMessages(
        session_pb2.ListMessagesRequest(session_id=session, page_size=2, page_token=token, order_by="sequence desc")
    )


def texts(messages: list[message_pb2.Message]) -> list[str]:
    return [message.content[0].text for message in messages]


async def test_messages_that_come_between_two_pages_move_nothing(mongo_uri: str, database_name: str) -> None:
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="assistant")
        for text in ("one", "two"):
            await harness.send_message_to_session(stubs, session, text)
        first = await newest_first(stubs, session, "")
        await harness.send_message_to_session(stubs, session, "three")
        second = await newest_first(stubs, session, first.next_page_token)
        assert texts([*first.messages, *second.messages]) == ["You said: two", "two", "You said: one", "one"]
        assert second.next_page_token == ""

        pages: list[message_pb2.Message] = []
        request = session_pb2.ListMessagesRequest(session_id=session, page_size=4)
        while True:
            page = await stubs.sessions.ListMessages(request)
            pages.extend(page.messages)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert texts(pages) == ["one", "You said: one", "two", "You said: two", "three", "You said: three"]


async def test_turns_sessions_and_agents_come_once_each(mongo_uri: str, database_name: str) -> None:
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model) as running,
        harness.connect(running.address) as stubs,
    ):
        sessions = [await harness.create_test_session(stubs, agent="assistant") for _ in range(5)]
        sent = [await harness.send_message_to_session(stubs, sessions[0], str(n)) for n in range(3)]

        listed: list[str] = []
        request = session_pb2.ListSessionsRequest(page_size=2)
        while True:
            page = await stubs.sessions.ListSessions(request)
            listed.extend(session.session_id for session in page.sessions)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert sorted(listed) == sorted(sessions)

        turns: list[str] = []
        turns_request = chat_pb2.ListTurnsRequest(session_id=sessions[0], page_size=1)
        while True:
            turns_page = await stubs.chat.ListTurns(turns_request)
            turns.extend(turn.turn_id for turn in turns_page.turns)
            if not turns_page.next_page_token:
                break
            turns_request.page_token = turns_page.next_page_token
        assert turns == [turn.turn_id for turn in reversed(sent)]

        one = await stubs.agents.ListAgents(agent_pb2.ListAgentsRequest(page_size=1))
        rest = await stubs.agents.ListAgents(agent_pb2.ListAgentsRequest(page_token=one.next_page_token))
        assert [agent.name for agent in [*one.agents, *rest.agents]] == ["assistant", "clerk"]
        assert one.total_size == rest.total_size == 2


async def test_large_messages_come_in_more_pages(mongo_uri: str, database_name: str) -> None:
    async with (
        harness.scripted('[[reply]]\ntext = "ok"') as model,
        harness.serving(mongo_uri, database_name, model) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="assistant")
        largest = "x" * (256 * 1024)
        for _ in range(18):
            await harness.send_message_to_session(stubs, session, largest)
        events = await harness.all_events(stubs, session)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert sum(event.ByteSize() for event in events) > 4 << 20
        messages: list[message_pb2.Message] = []
        request = session_pb2.ListMessagesRequest(session_id=session, page_size=100)
        while True:
            page = await stubs.sessions.ListMessages(request)
            messages.extend(page.messages)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert texts(messages) == [largest, "ok"] * 18


@pytest.mark.parametrize("time", [Timestamp(seconds=10**15), Timestamp(nanos=-5), Timestamp(seconds=-(10**15))])
async def test_a_time_that_is_none_is_the_callers_mistake(mongo_uri: str, database_name: str, time: Timestamp) -> None:
    async with (
        harness.serving(mongo_uri, database_name, "http://127.0.0.1:1/v1") as running,
        harness.connect(running.address) as stubs,
    ):
        for field in ("created_after", "created_before"):
            with pytest.raises(aio.AioRpcError) as raised:
                await stubs.sessions.ListSessions(_with(field, time))
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert field in str(raised.value.details())


def _with(field: str, time: Timestamp) -> session_pb2.ListSessionsRequest:
    request = session_pb2.ListSessionsRequest()
    getattr(request, field).CopyFrom(time)
    return request
