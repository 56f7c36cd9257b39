"""DeleteSession hides everything of a session at any stage, UndeleteSession shows it again, a purge leaves nothing."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import bson
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio
from pymongo import AsyncMongoClient

from tests import harness
from tests.contracts.stores import until
from tests.e2e.support.environment import AGENTS, Environment, until_event
from tests.e2e.support.second_tenant import TENANT as SECOND
from tests.status_details import details_of, refused
from turnkeeper import faults
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
match = '^do (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""


async def delete(stubs: harness.Stubs, session: str, *, etag: str = "") -> session_pb2.DeleteSessionResponse:
    return await stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session, etag=etag))


async def undelete(stubs: harness.Stubs, session: str) -> session_pb2.UndeleteSessionResponse:
    return await stubs.sessions.UndeleteSession(session_pb2.UndeleteSessionRequest(session_id=session))


async def a_conversation(stubs: harness.Stubs, *, session_id: str = "") -> tuple[str, chat_pb2.Turn]:
    """Creates a session with documents of every kind: its turn waits for the approval of a call."""
    session = await harness.create_test_session(stubs, agent="asker", session_id=session_id)
    turn = await harness.send_message_to_session(stubs, session, "do d-anything", request_id="known")
    await harness.wait_for_approval(stubs, session)
    return session, turn


Call = Callable[[harness.Stubs, str, str], Awaitable[object]]


async def _watch(stubs: harness.Stubs, session: str, _: str) -> object:
    return await stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session)).read()


async def _stream(stubs: harness.Stubs, session: str, _: str) -> object:
    request = chat_pb2.StreamMessageRequest(
        session_id=session, request_id="known", content=harness.text_parts("do d-anything")
    )
    return await stubs.chat.StreamMessage(request).read()


async def _repeat(stubs: harness.Stubs, session: str, _: str) -> object:
    return await harness.send_message_to_session(stubs, session, "do d-anything", request_id="known")


CALLS: dict[str, Call] = {
    "get": lambda stubs, session, _: stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session)),
    "suspend": lambda stubs, session, _: stubs.sessions.SuspendSession(
        session_pb2.SuspendSessionRequest(session_id=session)
    ),
    "resume": lambda stubs, session, _: stubs.sessions.ResumeSession(
        session_pb2.ResumeSessionRequest(session_id=session)
    ),
    "end": lambda stubs, session, _: stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session)),
    "watch": _watch,
    "list events": lambda stubs, session, _: stubs.sessions.ListEvents(
        session_pb2.ListEventsRequest(session_id=session)
    ),
    "list messages": lambda stubs, session, _: stubs.sessions.ListMessages(
        session_pb2.ListMessagesRequest(session_id=session)
    ),
    "list checkpoints": lambda stubs, session, _: stubs.sessions.ListCheckpoints(
        session_pb2.ListCheckpointsRequest(session_id=session)
    ),
    "fork": lambda stubs, session, _: stubs.sessions.ForkSession(
        session_pb2.ForkSessionRequest(session_id=session, request_id="fork")
    ),
    "restore": lambda stubs, session, _: stubs.sessions.RestoreCheckpoint(
        session_pb2.RestoreCheckpointRequest(session_id=session, sequence=1)
    ),
    "update": lambda stubs, session, _: stubs.sessions.UpdateSession(
        session_pb2.UpdateSessionRequest(
            session=session_pb2.Session(session_id=session, title="x"), update_mask=FieldMask(paths=["title"])
        )
    ),
    "submit": lambda stubs, session, _: stubs.chat.SubmitToolResult(
        chat_pb2.SubmitToolResultRequest(session_id=session, tool_call_id="call", result_json="1")
    ),
    "send": lambda stubs, session, _: harness.send_message_to_session(stubs, session, "hello"),
    "repeat": _repeat,
    "stream again": _stream,
    "get turn": lambda stubs, session, turn: stubs.chat.GetTurn(
        chat_pb2.GetTurnRequest(session_id=session, turn_id=turn)
    ),
    "list turns": lambda stubs, session, _: stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session)),
    "cancel": lambda stubs, session, turn: stubs.chat.CancelTurn(
        chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn)
    ),
    "retry": lambda stubs, session, turn: stubs.chat.RetryTurn(
        chat_pb2.RetryTurnRequest(session_id=session, turn_id=turn, request_id="again")
    ),
}


async def said_of(call: Awaitable[object], session: str) -> tuple[object, ...]:
    """Returns the whole answer, without the id."""
    try:
        await call
    except aio.AioRpcError as error:
        details = details_of(error)
        metadata = {key: value for key, value in details.metadata.items() if value != session}
        return details.status, details.reason, details.message.replace(session, "ID"), metadata, details.types
    raise AssertionError("it was answered")


async def test_a_deleted_session_is_answered_exactly_as_one_that_never_was(env: Environment) -> None:
    session, turn = await a_conversation(env.stubs)
    approval = await harness.wait_for_approval(env.stubs, session)
    await delete(env.stubs, session)
    for name, call in CALLS.items():
        deleted = await said_of(call(env.stubs, session, turn.turn_id), session)
        absent = await said_of(call(env.stubs, "never-was", turn.turn_id), "never-was")
        assert deleted == absent, name
        assert deleted[1] == "SESSION_NOT_FOUND", name
    with refused("APPROVAL_NOT_FOUND"):
        await env.stubs.approvals.GetApproval(approval_pb2.GetApprovalRequest(approval_id=approval.approval_id))
    with refused("APPROVAL_NOT_FOUND"):
        await harness.decide(env.stubs, approval)
    approvals = await env.stubs.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(session_id=session))
    assert not approvals.approvals
    listed = await env.stubs.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=100))
    assert session not in [listed_session.session_id for listed_session in listed.sessions]
    with refused("SESSION_ALREADY_EXISTS"):
        await harness.create_test_session(env.stubs, agent="asker", session_id=session)
    with refused("SESSION_ALREADY_EXISTS"):
        create = chat_pb2.CreateSessionParams(agent="asker")
        await harness.send_message_to_session(env.stubs, session, "hello", create_session=create)


async def test_undelete_shows_it_again_with_its_turns_cancelled(env: Environment) -> None:
    session, turn = await a_conversation(env.stubs)
    gone = await delete(env.stubs, session)
    assert gone.session.HasField("delete_time")
    assert gone.sequence
    assert (await delete(env.stubs, session, etag="another")).sequence == 0
    back = await undelete(env.stubs, session)
    assert not back.session.HasField("delete_time")
    assert (await undelete(env.stubs, session)).sequence == 0
    cancelled = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    assert cancelled.state == chat_pb2.TURN_STATE_CANCELLED
    kinds = harness.kinds(await harness.all_events(env.stubs, session))
    assert kinds[-5:] == [
        "approval_withdrawn",
        "tool_returned",
        "turn_cancelled",
        "session_updated",
        "session_updated",
    ]
    assert (await harness.send_message_to_session(env.stubs, session, "hello")).state == (chat_pb2.TURN_STATE_COMPLETED)
    with refused("SESSION_NOT_FOUND"):
        await undelete(env.stubs, "never-was")


async def test_only_the_session_as_it_was_read_is_deleted(env: Environment) -> None:
    session, _ = await a_conversation(env.stubs)
    with refused("ETAG_MISMATCH") as refusal:
        await delete(env.stubs, session, etag="stale")
    await delete(env.stubs, session, etag=refusal.details.metadata["etag"])


async def test_deleting_stops_what_runs_and_tells_every_watcher(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="worker")
    await harness.send_message_to_session(env.stubs, session, "hold d-running", wait=0)
    await harness.send_message_to_session(env.stubs, session, "do d-queued", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
    await env.tool_control.started("d-running")
    async with env.another() as other:
        watchers = [asyncio.create_task(_until_gone(stubs, session)) for stubs in (env.stubs, other)]
        await until_event(other, session, "tool_started")
        await delete(other, session)
        async with asyncio.timeout(10):
            streams = await asyncio.gather(*watchers)
    env.tool_control.release("d-running")
    for events in streams:
        assert harness.kinds(events)[-1] == "session_updated"
        assert harness.kinds(events).count("turn_cancelled") == 2
    await undelete(env.stubs, session)
    stored = await harness.all_events(env.stubs, session)
    assert stored[:-1] == streams[0] == streams[1]
    assert env.tool_control.effects("d-queued") == []


async def _until_gone(stubs: harness.Stubs, session: str) -> list[event_pb2.Event]:
    """Watches until the error that there is no such session. Returns the events."""
    watch = stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
    events: list[event_pb2.Event] = []
    with refused("SESSION_NOT_FOUND") as refusal:
        async for response in watch:
            events.extend(response.events)
    assert refusal.details.status is grpc.StatusCode.NOT_FOUND
    return events


# --- purged ----------------------------------------------------------------------------------------------------


async def traces(mongo_uri: str, database: str, session: str) -> list[str]:
    """Returns the collections that have the session's id anywhere in a document, apart from those of its twin."""
    names: list[str] = []
    async with AsyncMongoClient[dict[str, Any]](mongo_uri) as client:
        for name in await client[database].list_collection_names():
            documents = await client[database][name].find({"tenant": {"$ne": SECOND}}).to_list()
            names.extend(name for document in documents if session.encode() in bson.encode(document))
    return names


async def until_gone(mongo_uri: str, database: str, session: str) -> None:
    async def gone() -> bool:
        return not await traces(mongo_uri, database, session)

    await until(gone, within=20)


async def purge_all(env: Environment) -> None:
    """Purges the sessions that earlier tests deleted: a server that is to be killed would begin with one of them."""

    async def purged() -> bool:
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            return not await client[env.database].heads.count_documents({"deleted_at": {"$ne": None}})

    async with env.another(purge_after=timedelta(milliseconds=1)):
        await until(purged, within=20)


async def test_nothing_of_a_purged_session_is_left_and_its_id_begins_anew(env: Environment) -> None:
    session, _ = await a_conversation(env.stubs, session_id="purged-one")
    kept, _ = await a_conversation(env.stubs)
    await delete(env.stubs, session)
    before = await traces(env.mongo_uri, env.database, session)
    assert {"sessions", "heads", "events", "turns", "tool_calls", "approvals", "requests"} <= set(before)
    async with env.another(purge_after=timedelta(milliseconds=1)):
        await until_gone(env.mongo_uri, env.database, session)
    with refused("SESSION_NOT_FOUND"):
        await undelete(env.stubs, session)
    assert await traces(env.mongo_uri, env.database, kept)
    again, _ = await a_conversation(env.stubs, session_id=session)
    kinds = harness.kinds(await harness.all_events(env.stubs, again))
    assert kinds.count("session_created") == kinds.count("message_received") == 1


@pytest.mark.parametrize("point", ["purge.before_delete", "purge.before_end"])
async def test_a_purge_that_was_killed_is_finished_by_another(env: Environment, point: str) -> None:
    await purge_all(env)
    session, _ = await a_conversation(env.stubs, session_id=f"killed-{point}")
    await delete(env.stubs, session)
    flags = ("--agents", str(AGENTS), "--purge-after", "1ms")
    variables = {**env.tool_control.variables, faults.VARIABLE: f"{point}=kill"}
    async with harness.server_process(
        env.mongo_uri, env.database, env.model, flags=flags, variables=variables
    ) as server:
        assert await server.process.wait() == -signal.SIGKILL
    left = await traces(env.mongo_uri, env.database, session)
    assert {"sessions", "heads"} <= set(left)
    assert ("events" in left) == (point == "purge.before_delete")
    with refused("SESSION_NOT_FOUND"):
        await undelete(env.stubs, session)
    with refused("SESSION_ALREADY_EXISTS"):
        await harness.create_test_session(env.stubs, agent="asker", session_id=session)
    async with env.another(purge_after=timedelta(milliseconds=1)):
        await until_gone(env.mongo_uri, env.database, session)
    again = await harness.create_test_session(env.stubs, agent="asker", session_id=session)
    assert harness.kinds(await harness.all_events(env.stubs, again)) == ["session_created"]
