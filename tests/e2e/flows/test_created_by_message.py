"""Messages that create their session: several at once, refused, and sent again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio

from tests import harness
from tests.e2e.support.environment import Environment
from tests.status_details import details_of, refused
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.pb.v1 import chat_pb2, session_pb2
from turnkeeper.store.changeset import Head
from turnkeeper.store.mongo.store import MongoStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWINS = 4
SCRIPT = """
[[reply]]
text = "You said: {user}"
"""


def meeting(session_id: str, *, calls: int) -> type[MongoStore]:
    """Returns a store on which so many calls all find at first that there is no such session."""
    together = asyncio.Barrier(calls)

    class Meeting(MongoStore):
        async def session(self, key: SessionKey, *, deleted: bool = False) -> tuple[Session, Head] | None:
            session = await super().session(key, deleted=deleted)
            if session is None and key.session_id == session_id:
                await together.wait()
            return session

    return Meeting


async def test_calls_that_create_one_session_at_once_all_send_their_message(env: Environment) -> None:
    async def send(stubs: harness.Stubs, number: int) -> chat_pb2.Turn:
        params = chat_pb2.CreateSessionParams(agent="talker", title=f"title {number}")
        return await harness.send_message_to_session(
            stubs, "twins", f"hello {number}", create_session=params, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )

    async with asyncio.timeout(20), env.another(new_store=meeting("twins", calls=TWINS)) as stubs:
        turns = await asyncio.gather(*(send(stubs, number) for number in range(TWINS)))
    assert sorted(harness.answer_of(turn) for turn in turns) == [f"You said: hello {number}" for number in range(TWINS)]
    kinds = harness.kinds(await harness.all_events(env.stubs, "twins"))
    assert (kinds.count("session_created"), kinds.count("message_received")) == (1, TWINS)


async def test_of_calls_that_create_one_session_with_two_agents_one_is_refused(env: Environment) -> None:
    agents = ["talker", "plain"]
    async with asyncio.timeout(20), env.another(new_store=meeting("rivals", calls=len(agents))) as stubs:
        outcomes = await asyncio.gather(
            *(by_send_message(stubs, first_message("rivals", agent)) for agent in agents), return_exceptions=True
        )
    session = (await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id="rivals"))).session
    for agent, outcome in zip(agents, outcomes, strict=True):
        if agent == session.agent:
            assert isinstance(outcome, chat_pb2.Turn)
        else:
            assert isinstance(outcome, aio.AioRpcError)
            details = details_of(outcome)
            assert (details.reason, details.metadata["agent"]) == ("SESSION_ALREADY_EXISTS", session.agent)
    kinds = harness.kinds(await harness.all_events(env.stubs, "rivals"))
    assert (kinds.count("session_created"), kinds.count("message_received")) == (1, 1)


async def test_a_created_session_and_one_created_by_a_message_are_not_each_others_repeat(env: Environment) -> None:
    request_id = harness.new_request_id()
    response = await env.stubs.sessions.CreateSession(
        session_pb2.CreateSessionRequest(request_id=request_id, agent="talker")
    )
    wish = chat_pb2.CreateSessionParams(agent="talker")
    turn = await harness.send_message_to_session(env.stubs, "", "hello", request_id=request_id, create_session=wish)
    again = await harness.send_message_to_session(env.stubs, "", "hello", request_id=request_id, create_session=wish)
    assert turn.session_id != response.session.session_id
    assert (again.session_id, again.turn_id) == (turn.session_id, turn.turn_id)


async def test_a_stream_from_an_impossible_place_is_refused_before_anything_runs(env: Environment) -> None:
    call = env.stubs.chat.StreamMessage(
        chat_pb2.StreamMessageRequest(
            session_id="nowhere",
            request_id=harness.new_request_id(),
            content=harness.text_parts("from nowhere"),
            create_session=chat_pb2.CreateSessionParams(agent="talker"),
            after="garbage",
        )
    )
    with refused("INVALID_REQUEST") as refusal:
        await call.read()
    assert refusal.details.fields == ("after",)
    response = await env.stubs.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=100))
    sent = [session.session_id for session in response.sessions if session.session_id == "nowhere"]
    assert not sent or harness.kinds(await harness.all_events(env.stubs, "nowhere")) == ["session_created"]
    assert not env.model_requests("from nowhere")


async def test_empty_limits_are_no_limits_when_a_message_is_repeated(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    request = chat_pb2.SendMessageRequest(
        session_id=session,
        request_id=harness.new_request_id(),
        content=harness.text_parts("once"),
        wait=Duration(seconds=10),
    )
    first = await env.stubs.chat.SendMessage(request)
    request.limits.SetInParent()
    assert request.HasField("limits")
    again = await env.stubs.chat.SendMessage(request)
    assert again.turn.turn_id == first.turn.turn_id
    request.limits.max_iterations = 1
    with refused("REQUEST_ID_REUSED"):
        await env.stubs.chat.SendMessage(request)


Send = Callable[[harness.Stubs, chat_pb2.SendMessageRequest], Awaitable[chat_pb2.Turn]]


async def by_send_message(stubs: harness.Stubs, request: chat_pb2.SendMessageRequest) -> chat_pb2.Turn:
    return (await stubs.chat.SendMessage(request)).turn


async def by_stream_message(stubs: harness.Stubs, request: chat_pb2.SendMessageRequest) -> chat_pb2.Turn:
    same = chat_pb2.StreamMessageRequest(
        session_id=request.session_id,
        request_id=request.request_id,
        content=request.content,
        create_session=request.create_session,
    )
    return [response async for response in stubs.chat.StreamMessage(same)][-1].turn


EITHER_WAY = pytest.mark.parametrize("send", [by_send_message, by_stream_message])


def first_message(session_id: str, agent: str = "talker", **fields: Any) -> chat_pb2.SendMessageRequest:
    return chat_pb2.SendMessageRequest(
        session_id=session_id,
        request_id=harness.new_request_id(),
        content=harness.text_parts("hello"),
        create_session=chat_pb2.CreateSessionParams(agent=agent, **fields),
    )


@EITHER_WAY
async def test_create_session_with_another_agent_than_the_sessions_is_refused(env: Environment, send: Send) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    with refused("SESSION_ALREADY_EXISTS") as refusal:
        await send(env.stubs, first_message(session, agent="plain"))
    assert refusal.details.detail.session_id == session
    assert refusal.details.metadata["agent"] == "talker"
    with refused("SESSION_ALREADY_EXISTS"):
        await send(env.stubs, first_message(session, agent="no-such-agent"))
    assert harness.kinds(await harness.all_events(env.stubs, session)) == ["session_created"]
    assert (await send(env.stubs, first_message(session))).state == chat_pb2.TURN_STATE_COMPLETED


@EITHER_WAY
async def test_create_session_leaves_title_and_labels_of_an_existing_session_alone(
    env: Environment, send: Send
) -> None:
    response = await env.stubs.sessions.CreateSession(
        session_pb2.CreateSessionRequest(
            request_id=harness.new_request_id(), agent="talker", title="Plums", labels={"team": "blue"}
        )
    )
    session = response.session.session_id
    turn = await send(env.stubs, first_message(session, title="Figs", labels={"team": "red", "new": "label"}))
    assert (turn.session_id, turn.state) == (session, chat_pb2.TURN_STATE_COMPLETED)
    now = (await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))).session
    assert (now.title, dict(now.labels), now.agent) == ("Plums", {"team": "blue"}, "talker")


@EITHER_WAY
@pytest.mark.parametrize("named", [True, False])
async def test_a_repeat_is_answered_from_its_record_before_create_session_is_looked_at(
    env: Environment, send: Send, named: bool
) -> None:
    request = first_message(f"repeated-{harness.new_request_id()}" if named else "", title="Plums")
    first = await send(env.stubs, request)
    await env.stubs.sessions.UpdateSession(
        session_pb2.UpdateSessionRequest(
            session=session_pb2.Session(session_id=first.session_id, title="Figs"),
            update_mask=FieldMask(paths=["title"]),
        )
    )
    assert (await send(env.stubs, request)).turn_id == first.turn_id
    request.create_session.agent = "plain"
    with refused("REQUEST_ID_REUSED"):
        await send(env.stubs, request)
    kinds = harness.kinds(await harness.all_events(env.stubs, first.session_id))
    assert kinds.count("message_received") == 1
