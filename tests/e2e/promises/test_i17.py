"""I17: this version and the next one run together on one database, and either may be stopped for a while."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import Environment
from tests.e2e.support.faults import swept
from tests.e2e.support.polling import eventually
from tests.e2e.support.server_processes import doomed
from tests.e2e.support.stream_reader import Reader, stream
from tests.status_details import refused
from turnkeeper import app
from turnkeeper.engine.rules.next_schema import KIND
from turnkeeper.pb.v1 import chat_pb2, session_pb2
from turnkeeper.settings import Settings
from turnkeeper.start_errors import SettingError
from turnkeeper.store.mongo.documents import SCHEMA
from turnkeeper.store.mongo.next_schema import FIELD, NEXT, VARIABLE

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEEDS_NEXT = {"$set": {"log_needs": NEXT}, "$inc": {"revision": 1}}
"""As a step of the next version leaves a head."""
SCRIPT = r"""
[[reply]]
match = '^do (?P<label>[\w-]+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^run (?P<label>[\w-]+)'
tool_calls = [{ name = "hold_idempotent", arguments = { label = "{label}" } }]

[[reply]]
match = "slow"
text = "One two three four five six."
chunk = 1
delay = "40ms"

[[reply]]
text = "Told: {tool_result}"
"""
COMPLETED = chat_pb2.TURN_STATE_COMPLETED
NEWER = {VARIABLE: "N+1"}
SETTINGS: dict[str, Any] = {"lease": timedelta(seconds=2)}


@contextlib.asynccontextmanager
async def newer(env: Environment, **settings: Any) -> AsyncIterator[harness.Stubs]:
    """Starts a server of the next version."""
    async with env.another(more=NEWER, **settings) as stubs:
        yield stubs


async def head_of(env: Environment, session: str) -> dict[str, Any]:
    return (await documents(env, "heads", session))[0]


def of(session: str) -> dict[str, str]:
    """Returns the filter of the session's documents."""
    return {"tenant": harness.TENANT, "session_id": session}


async def documents(env: Environment, collection: str, session: str) -> list[dict[str, Any]]:
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        return await client[env.database][collection].find(of(session)).to_list()


async def owners(env: Environment, session: str) -> list[int]:
    """Returns the schema that wrote each note of the next version, in order."""
    return [event["schema"] for event in await documents(env, "events", session) if event["kind"] == KIND]


class TestTwoVersions:
    async def test_i17_the_next_version_writes_more_and_this_one_keeps_it(self, env: Environment) -> None:
        async with newer(env) as stubs:
            session = await harness.create_test_session(stubs, agent="asker")
            turn = await harness.send_message_to_session(stubs, session, "do kept")
        assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        approval = await harness.wait_for_approval(env.stubs, session)
        await harness.decide(env.stubs, approval)
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        for collection in ("heads", "turns", "tool_calls", "approvals", "requests"):
            for document in await documents(env, collection, session):
                assert (collection, document["schema"], document[FIELD]) == (collection, NEXT, {"schema": NEXT})
        (changed,) = await documents(env, "turns", session)
        assert changed["state"] == "CANCELLED"
        after = await harness.send_message_to_session(env.stubs, session, "and now?")
        assert after.state == COMPLETED
        assert (await head_of(env, session))["needs"] == 0

    async def test_i17_an_event_that_this_version_does_not_know_reaches_its_watchers_as_it_is(
        self, env: Environment
    ) -> None:
        async with newer(env) as stubs:
            session = await harness.create_test_session(stubs, agent="talker")
            reader = Reader(whole=False)
            async for _ in stream(stubs, session, "hello", reader):
                pass
            there = await harness.all_events(stubs, session)
        here = await harness.all_events(env.stubs, session)
        assert [event.SerializeToString() for event in here] == [event.SerializeToString() for event in there]
        (note,) = [event for event in here if event.WhichOneof("payload") is None]
        assert note.ignorable
        assert f"by schema {NEXT}".encode() in note.SerializeToString()
        assert note in reader.events
        watch = env.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session))
        events = [event async for response in watch for event in response.events]
        assert events == here
        again = await harness.send_message_to_session(env.stubs, session, "hello again")
        assert again.state == COMPLETED

    async def test_i17_this_version_never_owns_a_turn_that_needs_the_next_and_nothing_is_lost(
        self, env: Environment
    ) -> None:
        """A roll-back: the next version is stopped while one of its turns waits, and comes back."""
        async with newer(env) as stubs:
            session = await harness.create_test_session(stubs, agent="asker")
            turn = await harness.send_message_to_session(stubs, session, "do rolled-back")
        head = await head_of(env, session)
        assert (head["needs"], head["owner"]) == (NEXT, "")
        await harness.decide(env.stubs, await harness.wait_for_approval(env.stubs, session))
        other = await harness.create_test_session(env.stubs, agent="talker")
        for number in range(4):  # this version goes on with its own
            sent = await harness.send_message_to_session(env.stubs, other, f"meanwhile {number}")
            assert sent.state == COMPLETED
        await swept(env.mongo_uri, env.database)
        waits = await head_of(env, session)
        assert (waits["fence"], waits["owner"], waits["active_turn"]) == (head["fence"], "", turn.turn_id)
        assert waits["wake_at"] is not None
        async with newer(env) as stubs:
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: rolled-back is done"
        assert len(env.tool_control.effects("rolled-back")) == 1
        assert (await head_of(env, session))["needs"] == 0

    async def test_i17_a_killed_owners_turn_waits_for_its_version(self, env: Environment) -> None:
        async with doomed(env, more=NEWER) as server, harness.connect(server.address) as stubs:
            session = await harness.create_test_session(stubs, agent="worker")
            turn = await harness.send_message_to_session(stubs, session, "run killed", wait=0)
            await env.tool_control.started("killed")
            await server.kill()

        async def requeued() -> bool | None:
            return (await head_of(env, session))["wake_at"] is not None or None

        await eventually(requeued)
        await swept(env.mongo_uri, env.database)
        assert len(env.tool_control.effects("killed")) == 1
        async with newer(env) as stubs:
            await env.tool_control.started("killed", times=2)
            env.tool_control.release("killed")
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: killed is done"

    async def test_i17_the_next_version_finishes_what_this_one_left(self, env: Environment) -> None:
        async with doomed(env) as server, harness.connect(server.address) as stubs:
            session = await harness.create_test_session(stubs, agent="asker")
            turn = await harness.send_message_to_session(stubs, session, "do left")
        async with newer(env) as stubs:
            await _only_for_the_next(env, session)
            await harness.decide(stubs, await harness.wait_for_approval(stubs, session))
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert ended.state == COMPLETED
        assert await owners(env, session) == [NEXT]

    async def test_i17_a_log_that_only_the_next_version_understands_keeps_this_one_from_its_turns(
        self, env: Environment
    ) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            await client[env.database]["heads"].update_one(of(session), NEEDS_NEXT)
        turn = await harness.send_message_to_session(env.stubs, session, "not mine", wait=1)
        assert turn.state == chat_pb2.TURN_STATE_PENDING
        async with newer(env) as stubs:
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
            assert ended.state == COMPLETED
        retried = await harness.send_message_to_session(env.stubs, session, "nor this", wait=1)
        assert retried.state == chat_pb2.TURN_STATE_PENDING
        await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))

    async def test_i17_a_fork_needs_the_version_that_its_source_needs(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="talker")
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            await client[env.database]["heads"].update_one(of(source), NEEDS_NEXT)
        request = session_pb2.ForkSessionRequest(session_id=source, request_id="fork", new_session_id=f"{source}-new")
        with refused("SERVICE_UNAVAILABLE") as refusal:
            await env.stubs.sessions.ForkSession(request)
        assert refusal.details.retry_after == timedelta(seconds=1)
        async with newer(env) as stubs:
            fork = (await stubs.sessions.ForkSession(request)).session.session_id
        turn = await harness.send_message_to_session(env.stubs, fork, "not mine", wait=1)
        assert turn.state == chat_pb2.TURN_STATE_PENDING
        for session in (source, fork):
            await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))

    async def test_i17_a_rolling_change_and_back_under_load(self, env: Environment) -> None:
        """Callers that talk to whichever server is there; every turn ends, and the log is one."""
        done: list[chat_pb2.Turn] = []
        stop = asyncio.Event()

        async def caller(number: int, replicas: list[harness.Stubs]) -> None:
            session = await harness.create_test_session(replicas[0], agent="talker")
            while not stop.is_set():
                stubs = replicas[len(done) % len(replicas)]
                sent = await harness.send_message_to_session(stubs, session, f"slow {number}", wait=0)
                # Only this version stays: the turn's end is seen here, whichever version runs it.
                done.append(await harness.wait_for_turn(env.stubs, session, sent.turn_id))

        replicas = [env.stubs]
        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(caller(number, replicas)) for number in range(6)]
            for _ in range(2):
                async with newer(env, drain_grace=timedelta(milliseconds=100)) as stubs:
                    replicas.append(stubs)
                    await _until_done(done, len(done) + 12)
                    replicas.remove(stubs)
                await _until_done(done, len(done) + 6)
            stop.set()
            await asyncio.wait(callers)
        assert {turn.state for turn in done} == {COMPLETED}
        sessions = {turn.session_id for turn in done}
        by = [await owners(env, session) for session in sessions]
        assert sum(map(len, by)) >= 6, "the next version ran some of them"
        assert sum(map(len, by)) < len(done), "and this one the others"
        await check(env.mongo_uri, env.database)


class TestStarting:
    async def test_i17_this_version_starts_on_what_the_next_one_wrote(self, env: Environment) -> None:
        async with newer(env) as stubs:
            session = await harness.create_test_session(stubs, agent="talker")
        async with env.another() as stubs:
            assert (await harness.send_message_to_session(stubs, session, "hello")).state == COMPLETED

    @pytest.mark.parametrize("value", ["0", str(SCHEMA + 2), "next"])
    async def test_another_schema_is_refused_at_start(self, env: Environment, value: str) -> None:
        with pytest.raises(SettingError, match=f"{VARIABLE} is '{value}'"):
            async with app.serving(Settings(mongodb_uri=env.mongo_uri), {VARIABLE: value}):
                pass


async def _only_for_the_next(env: Environment, session: str) -> None:
    """Leaves the turn to the next version, so that this one does not go on with it."""
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        await client[env.database]["heads"].update_one(of(session), {"$set": {"needs": NEXT}})


async def _until_done(done: list[chat_pb2.Turn], least: int) -> None:
    async def enough() -> bool | None:
        return len(done) >= least or None

    await eventually(enough, seconds=40)
