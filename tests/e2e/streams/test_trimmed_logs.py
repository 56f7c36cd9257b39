"""Trimmed logs: a reader of trimmed events gets an error with the cursor to go on from; no reader gets a gap."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.contracts import stores
from tests.contracts.stores import until
from tests.e2e.support.environment import AGENTS, Environment, transcript
from tests.status_details import StatusDetails, refused
from turnkeeper import faults
from turnkeeper.domain.session import SessionKey
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.mongo.store import MongoStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
text = "You said: {user}"
"""
NOTHING = timedelta()


@asynccontextmanager
async def store_of(env: Environment) -> AsyncIterator[MongoStore]:
    store = MongoStore(env.mongo_uri, database=env.database, codec=WireCodec())
    try:
        yield store
    finally:
        await store.close()


async def trimmed(env: Environment, *, messages: int = 2) -> tuple[str, int]:
    """Creates a session whose whole log is trimmed. Returns its id and its last number."""
    session = await harness.create_test_session(env.stubs, agent="talker")
    for number in range(messages):
        turn = await harness.send_message_to_session(
            env.stubs, session, f"message {number} of {session}", request_id=f"m{number}"
        )
        assert turn.state == chat_pb2.TURN_STATE_COMPLETED
    response = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
    await trim(env, session)
    return session, response.session.last_sequence


async def trim(env: Environment, session: str) -> None:
    async with store_of(env) as store:

        async def done() -> bool:
            await stores.trim(store)
            read = await store.session(SessionKey("default", session))
            return read is not None and read[1].compacted_to == read[1].last_seq

        await until(done)


async def _watch(env: Environment, session: str) -> object:
    return await env.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session)).read()


async def _watch_after(env: Environment, session: str) -> object:
    request = session_pb2.WatchEventsRequest(session_id=session, after_sequence=3, follow=True)
    return await env.stubs.sessions.WatchEvents(request).read()


async def _list(env: Environment, session: str) -> object:
    return await env.stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session))


async def _list_some(env: Environment, session: str) -> object:
    """Lists events of a kind that is kept: the answer would look complete."""
    request = session_pb2.ListEventsRequest(session_id=session, types=["message_received"], after_sequence=1)
    return await env.stubs.sessions.ListEvents(request)


async def _stream_again(env: Environment, session: str) -> object:
    content = harness.text_parts(f"message 0 of {session}")
    request = chat_pb2.StreamMessageRequest(session_id=session, request_id="m0", content=content)
    return await env.stubs.chat.StreamMessage(request).read()


READERS = [_watch, _watch_after, _list, _list_some, _stream_again]


def check_cursors(details: StatusDetails, last: int) -> None:
    assert details.status is grpc.StatusCode.OUT_OF_RANGE
    assert details.metadata["head_sequence"] == str(last)
    assert details.metadata["oldest_sequence"] == str(last + 1)
    assert details.detail.cursor == details.metadata["oldest_cursor"]


@pytest.mark.parametrize("read", READERS)
async def test_a_reader_of_trimmed_events_gets_the_cursor_to_go_on_from(
    env: Environment, read: Callable[[Environment, str], Awaitable[object]]
) -> None:
    session, last = await trimmed(env)
    with refused("CURSOR_EXPIRED") as refusal:
        await read(env, session)
    check_cursors(refusal.details, last)
    await harness.send_message_to_session(env.stubs, session, "one more")
    with refused("CURSOR_EXPIRED") as refusal:
        await read(env, session)
    assert refusal.details.metadata["oldest_sequence"] == str(last + 1)
    for cursor, first in ((refusal.details.detail.cursor, [last + 1]), (refusal.details.metadata["head_cursor"], [])):
        page = await env.stubs.sessions.ListEvents(
            session_pb2.ListEventsRequest(session_id=session, after=cursor, page_size=100)
        )
        assert [event.sequence for event in page.events][:1] == first


async def test_what_is_live_needs_nothing_of_what_is_gone(env: Environment) -> None:
    session, last = await trimmed(env)
    watch = env.stubs.sessions.WatchEvents(
        session_pb2.WatchEventsRequest(session_id=session, live_only=True, follow=True)
    )
    events: list[event_pb2.Event] = []
    async for response in watch:
        if response.caught_up:
            await harness.send_message_to_session(env.stubs, session, "one more")
        events.extend(response.events)
        if "turn_completed" in harness.kinds(events):
            break
    watch.cancel()
    assert [event.sequence for event in events] == list(range(last + 1, last + 1 + len(events)))


async def test_a_model_and_a_reader_of_messages_still_have_the_whole_conversation(env: Environment) -> None:
    session, _ = await trimmed(env, messages=3)
    listed = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
    assert len(listed.messages) == 6
    await harness.send_message_to_session(env.stubs, session, f"the last of {session}")
    assert len(transcript(env.model_requests(f"the last of {session}")[-1])) == 8  # instructions, three pairs, this one


async def test_a_fork_of_what_is_left_has_the_whole_conversation_and_its_ends(env: Environment) -> None:
    session, last = await trimmed(env, messages=3)
    response = await env.stubs.sessions.ForkSession(
        session_pb2.ForkSessionRequest(session_id=session, request_id=harness.new_request_id())
    )
    fork = response.session.session_id
    turns = await env.stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=fork))
    assert [turn.state for turn in turns.turns] == [chat_pb2.TURN_STATE_COMPLETED] * 3
    await harness.send_message_to_session(env.stubs, fork, f"the last of {fork}")
    assert len(transcript(env.model_requests(f"the last of {fork}")[-1])) == 8
    await check(env.mongo_uri, env.database)
    with refused("CURSOR_EXPIRED") as refusal:
        await env.stubs.sessions.ForkSession(
            session_pb2.ForkSessionRequest(session_id=session, request_id=harness.new_request_id(), sequence=last - 1)
        )
    check_cursors(refusal.details, last)


async def test_a_completed_turn_is_not_retried_after_a_restoration_to_the_end_of_what_is_gone(env: Environment) -> None:
    session, last = await trimmed(env)
    await harness.send_message_to_session(env.stubs, session, "gone again")
    await env.stubs.sessions.RestoreCheckpoint(session_pb2.RestoreCheckpointRequest(session_id=session, sequence=last))
    turns = (await env.stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))).turns
    for turn in turns:
        with refused("TURN_NOT_RETRYABLE"):
            await harness.retry(env.stubs, session, turn.turn_id)


async def test_only_checkpoints_that_can_be_restored_are_listed(env: Environment) -> None:
    session, last = await trimmed(env)
    request = session_pb2.ListCheckpointsRequest(session_id=session)
    assert not (await env.stubs.sessions.ListCheckpoints(request)).checkpoints
    await harness.send_message_to_session(env.stubs, session, "one more")
    listed = (await env.stubs.sessions.ListCheckpoints(request)).checkpoints
    assert [checkpoint.kind for checkpoint in listed] == [
        session_pb2.CHECKPOINT_KIND_EXECUTION_START,
        session_pb2.CHECKPOINT_KIND_EXECUTION_COMPLETE,
    ]
    for place in ({"checkpoint_id": "approval_pending-2"}, {"sequence": last - 1}):
        with refused("CURSOR_EXPIRED") as refusal:
            await env.stubs.sessions.RestoreCheckpoint(
                session_pb2.RestoreCheckpointRequest(session_id=session, **place)
            )
        assert refusal.details.metadata["oldest_sequence"] == str(last + 1)
        assert refusal.details.detail.cursor == refusal.details.metadata["oldest_cursor"]
        assert refusal.details.metadata["head_cursor"]


async def test_an_old_cancellation_can_be_repeated(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    turn = await harness.send_message_to_session(env.stubs, session, "hello")
    request = chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id)
    before = await env.stubs.chat.CancelTurn(request)
    await trim(env, session)
    assert (await env.stubs.chat.CancelTurn(request)).turn == before.turn


async def test_the_log_is_marked_as_trimmed_before_anything_is_deleted(env: Environment) -> None:
    """A server is killed between the two: no reader gets a gap, and another server goes on.

    Without a second tenant: the first log that is trimmed, at which the server is killed, must be that of the session.
    """
    database = f"{env.database}_killed"
    flags = ("--identity", "none", "--agents", str(AGENTS), "--keep-events", "1s", "--operation-time", "500ms")
    armed = {faults.VARIABLE: "trim.before_delete=kill"}
    try:
        async with (
            harness.serving(env.mongo_uri, database, env.model, agents=AGENTS, identity="none") as running,
            harness.connect(running.address) as stubs,
            store_of(replace(env, database=database)) as store,
        ):
            session = await harness.create_test_session(stubs, agent="talker")
            await harness.send_message_to_session(stubs, session, "hello")
            events = await harness.all_events(stubs, session)
            async with harness.server_process(
                env.mongo_uri, database, env.model, flags=flags, variables=armed
            ) as server:
                assert await server.process.wait() == -signal.SIGKILL
            with refused("CURSOR_EXPIRED"):
                await harness.all_events(stubs, session)
            assert len(await store.events(SessionKey("default", session), after=0, limit=99)) == len(events)
            kept = [event.sequence for event in events if event.WhichOneof("payload") not in GONE]

            async def gone() -> bool:
                left = await store.events(SessionKey("default", session), after=0, limit=99)
                return [event.sequence for event in left] == kept

            async with harness.server_process(env.mongo_uri, database, env.model, flags=flags):
                await until(gone)
            with refused("CURSOR_EXPIRED"):
                await harness.all_events(stubs, session)
            await check(env.mongo_uri, database)
    finally:
        async with AsyncMongoClient[dict[str, object]](env.mongo_uri) as client:
            await client.drop_database(database)


GONE = {"session_created", "session_activated"}
