"""A cached session: its turns read nothing from the database, and changes by other replicas are noticed."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient, monitoring

from tests import harness
from tests.contracts.stores import until
from tests.e2e.support.environment import AGENTS, Environment, transcript
from tests.harness import Stubs
from tests.integration.mongo.commands import Command, Recorder, name_of
from tests.status_details import refused
from turnkeeper.engine.sessions import NEW_IN_A_ROW
from turnkeeper.pb.v1 import chat_pb2, message_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
COMPLETED = chat_pb2.TURN_STATE_COMPLETED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other(env: Environment) -> AsyncIterator[Stubs]:
    async with env.another() as stubs:
        yield stubs


async def cached_session(stubs: Stubs, *words: str, session_id: str = "") -> str:
    """Creates a session on this replica, with a turn for each of the texts."""
    session = await harness.create_test_session(stubs, agent="talker", session_id=session_id)
    for text in words:
        await send(stubs, session, text)
    return session


async def send(stubs: Stubs, session: str, words: str, **more: Any) -> chat_pb2.Turn:
    turn = await harness.send_message_to_session(stubs, session, words, **more)
    assert turn.state == COMPLETED, turn
    return turn


def conversation(env: Environment, words: str) -> list[str]:
    """Returns the messages of the last request to the model that has these words."""
    return [line for line in transcript(env.model_requests(words)[-1]) if not line.startswith("system: ")]


# --- what it saves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 3])
async def test_a_turn_of_a_known_session_reads_neither_its_head_nor_its_log(env: Environment, before: int) -> None:
    database = f"{env.database}_warm_{before}"
    recorder = Recorder(database)
    monitoring.register(recorder)
    slow: dict[str, Any] = {"poll": timedelta(minutes=5), "sweep": timedelta(minutes=5), "lease": timedelta(minutes=5)}
    async with (
        harness.serving(env.mongo_uri, database, env.model, agents=AGENTS, **slow) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await cached_session(stubs, *(f"w-{before}-{number}" for number in range(before)))
        with recorder.recording() as commands:
            await send(stubs, session, f"w-{before}-last")
            read = [command for command in commands if _decides(command)]
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        await client.drop_database(database)
    assert not read
    assert len(conversation(env, f"w-{before}-last")) == 2 * before + 1


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("with_tools", [False, True])
async def test_a_turn_that_creates_its_session_is_two_transactions(
    env: Environment, named: bool, with_tools: bool
) -> None:
    """One for the session with its message, one for the answer; a caller's own id is looked for before."""
    database = f"{env.database}_new_{named}_{with_tools}"
    recorder = Recorder(database)
    monitoring.register(recorder)
    slow: dict[str, Any] = {"poll": timedelta(minutes=5), "sweep": timedelta(minutes=5), "lease": timedelta(minutes=5)}
    tool = chat_pb2.ClientTool(name="pick", description="Picks one.", schema_json='{"type": "object"}')
    more: dict[str, Any] = {"client_tools": [tool]} if with_tools else {}
    async with (
        harness.serving(env.mongo_uri, database, env.model, agents=AGENTS, **slow) as running,
        harness.connect(running.address) as stubs,
    ):
        wish = chat_pb2.CreateSessionParams(agent="talker")
        await send(stubs, "", "the database's time is known from now on", create_session=wish)
        with recorder.recording() as commands:
            turn = await send(stubs, "fresh" if named else "", "hello", create_session=wish, **more)
            sent = [command for command in commands if _belongs_to_a_turn(command)]
        kinds = harness.kinds(await harness.all_events(stubs, turn.session_id))
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        await client.drop_database(database)
    alone = [command for command in sent if "autocommit" not in command and turn.session_id in str(command)]
    assert [name_of(command) for command in alone] == ["aggregate"] * named
    assert [name_of(command) for command in sent].count("commitTransaction") == 2
    assert kinds == [
        *("session_created", "message_received", "session_activated", "turn_started"),
        *("message_completed", "turn_completed"),
    ]


async def test_after_many_new_sessions_a_named_one_is_not_looked_for_until_one_exists(env: Environment) -> None:
    database = f"{env.database}_in_a_row"
    recorder = Recorder(database)
    monitoring.register(recorder)
    slow: dict[str, Any] = {"poll": timedelta(minutes=5), "sweep": timedelta(minutes=5), "lease": timedelta(minutes=5)}
    wish = chat_pb2.CreateSessionParams(agent="talker")

    async def looks(stubs: Stubs, session: str, words: str) -> int:
        with recorder.recording() as commands:
            assert harness.answer_of(await send(stubs, session, words, create_session=wish))
            return len([command for command in commands if _looks_for(command, session)])

    async with (
        harness.serving(env.mongo_uri, database, env.model, agents=AGENTS, **slow) as earlier,
        harness.connect(earlier.address) as stubs,
    ):
        await send(stubs, "exists", "f-before", create_session=wish)
    async with (
        harness.serving(env.mongo_uri, database, env.model, agents=AGENTS, **slow) as running,
        harness.connect(running.address) as stubs,
    ):
        await send(stubs, "", "the database's time is known from now on", create_session=wish)
        first = [await looks(stubs, f"new-{number}", "hello") for number in range(NEW_IN_A_ROW)]
        trusted = await looks(stubs, "new-at-last", "hello")
        known = await looks(stubs, "new-at-last", "hello again")
        mistaken = await looks(stubs, "exists", "f-after")
        afterwards = await looks(stubs, "new-after-it", "hello")
        kinds = harness.kinds(await harness.all_events(stubs, "exists"))
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        await client.drop_database(database)
    assert (first, trusted) == ([1] * NEW_IN_A_ROW, 0)
    assert min(known, mistaken, afterwards) > 0
    assert (kinds.count("session_created"), kinds.count("message_received")) == (1, 2)
    assert len(conversation(env, "f-after")) == 3


def _looks_for(command: Command, session: str) -> bool:
    """A read of the session's head with its document."""
    match = command["pipeline"][0].get("$match", {}) if name_of(command) == "aggregate" else {}
    return isinstance(match.get("_id"), dict) and match["_id"].get("session_id") == session


def _belongs_to_a_turn(command: Command) -> bool:
    """Heartbeats and the change stream do not, nor does a look for turns to claim."""
    is_claim = name_of(command) == "aggregate" and "_id" not in command["pipeline"][0].get("$match", {})
    return not is_claim and "replicas" not in command.values() and name_of(command) != "getMore"


def _decides(command: Command) -> bool:
    """A snapshot, a request's record, a conversation. (Claims aggregate heads as well, by `wake_at`.)"""
    collection = command.get(name_of(command))
    if name_of(command) == "aggregate":
        return collection == "heads" and "_id" in command["pipeline"][0]["$match"]
    return name_of(command) == "find" and (
        collection == "requests" or (collection == "events" and "kind" in command["filter"])
    )


# --- what others did in between ------------------------------------------------------------------------------------


async def test_turns_on_another_replica_are_part_of_the_conversation(env: Environment, other: Stubs) -> None:
    session = await cached_session(env.stubs, "w-turns one")
    await send(other, session, "w-turns two")
    await send(env.stubs, session, "w-turns three")
    await send(other, session, "w-turns four")
    assert conversation(env, "w-turns four") == [
        "user: w-turns one",
        "assistant: You said: w-turns one",
        "user: w-turns two",
        "assistant: You said: w-turns two",
        "user: w-turns three",
        "assistant: You said: w-turns three",
        "user: w-turns four",
    ]


async def test_a_restoration_on_another_replica_is_seen(env: Environment, other: Stubs) -> None:
    session = await cached_session(env.stubs, "w-restored one")
    place = (await harness.all_events(env.stubs, session))[-1].sequence
    await send(env.stubs, session, "w-restored two")
    await other.sessions.RestoreCheckpoint(session_pb2.RestoreCheckpointRequest(session_id=session, sequence=place))
    await send(env.stubs, session, "w-restored three")
    assert conversation(env, "w-restored three") == [
        "user: w-restored one",
        "assistant: You said: w-restored one",
        "user: w-restored three",
    ]


async def test_a_suspension_on_another_replica_refuses_here_and_a_resumption_accepts_here(
    env: Environment, other: Stubs
) -> None:
    session = await cached_session(env.stubs, "w-suspended one")
    await other.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=session))
    with refused("SESSION_SUSPENDED"):
        await send(env.stubs, session, "w-suspended two")
    await other.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=session))
    await env.stubs.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=session))
    await other.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=session))
    await send(env.stubs, session, "w-suspended three")  # the cached snapshot is still suspended


async def test_a_turn_that_runs_on_another_replica_refuses_here(env: Environment, other: Stubs) -> None:
    session = await harness.create_test_session(env.stubs, agent="worker")
    running = await harness.send_message_to_session(other, session, "hold w-running", wait=0)
    await env.tool_control.started("w-running")
    with refused("TURN_IN_PROGRESS") as refusal:
        await send(env.stubs, session, "w-running two")
    assert refusal.details.metadata["turn_id"] == running.turn_id
    env.tool_control.release("w-running")
    await harness.wait_for_turn(other, session, running.turn_id)
    await send(env.stubs, session, "w-running three")


async def test_a_session_deleted_on_another_replica_is_gone_here(env: Environment, other: Stubs) -> None:
    session = await cached_session(env.stubs, "w-deleted one")
    await other.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session))
    with refused("SESSION_NOT_FOUND"):
        await send(env.stubs, session, "w-deleted two")
    await other.sessions.UndeleteSession(session_pb2.UndeleteSessionRequest(session_id=session))
    await send(env.stubs, session, "w-deleted three")


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_new_session_of_the_same_id_has_nothing_of_the_purged_one(env: Environment, turns: int) -> None:
    """Its numbers are the same as those of the session that is kept here: nothing but the head's own number differs."""
    name = f"w-purged-{turns}"
    async with env.another(purge_after=timedelta(milliseconds=1), sweep=timedelta(milliseconds=30)) as purger:
        await cached_session(env.stubs, *(f"{name} old" for _ in range(turns)), session_id=name)
        await purger.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=name))

        async def made_again() -> bool:
            try:
                await harness.create_test_session(purger, agent="worker", session_id=name)
            except Exception:  # noqa: BLE001 - until it is purged the id is taken
                return False
            return True

        await until(made_again)
        for _ in range(turns):
            await send(purger, name, f"{name} new")
        await send(env.stubs, name, f"{name} last")
    expected = [line for _ in range(turns) for line in (f"user: {name} new", f"assistant: You said: {name} new")]
    assert conversation(env, f"{name} last") == [*expected, f"user: {name} last"]
    response = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=name))
    assert response.session.agent == "worker"


# --- repeats -------------------------------------------------------------------------------------------------------


async def test_a_repeat_on_a_known_session_is_the_first_ones_turn(env: Environment, other: Stubs) -> None:
    session = await cached_session(env.stubs, "w-repeat one")
    first = await send(env.stubs, session, "w-repeat two", request_id="again")
    await send(env.stubs, session, "w-repeat three")
    for stubs in (env.stubs, env.stubs, other):
        assert (await send(stubs, session, "w-repeat two", request_id="again")).turn_id == first.turn_id
        with refused("REQUEST_ID_REUSED"):
            await send(stubs, session, "w-repeat another", request_id="again")
    await send(env.stubs, session, "w-repeat four")
    with refused("REQUEST_ID_REUSED"):
        await send(env.stubs, session, "w-repeat another", request_id="again")
    assert len(env.model_requests("w-repeat two")) == 3, "the turns two, three and four"


async def test_at_once_on_two_replicas_that_know_the_session_it_is_one_turn(env: Environment, other: Stubs) -> None:
    session = await cached_session(env.stubs, "w-once")
    for number in range(5):
        servers = (env.stubs, other, env.stubs, other)
        turns = await asyncio.gather(
            *(send(stubs, session, f"w-once {number}", request_id=f"once {number}") for stubs in servers)
        )
        assert len({turn.turn_id for turn in turns}) == 1
    page = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
    assert len(page.messages) == 12


# --- lists ---------------------------------------------------------------------------------------------------------


async def test_both_replicas_list_the_same_messages_at_any_time(env: Environment, other: Stubs) -> None:
    session = await cached_session(env.stubs)
    for number in range(4):
        await send((env.stubs, other)[number % 2], session, f"w-listed {number}")
        here, there = await _listed(env.stubs, session), await _listed(other, session)
        assert here == there
        assert len(here) == 2 * (number + 1)


async def _listed(stubs: Stubs, session: str) -> list[message_pb2.Message]:
    """Returns all messages, in pages of three."""
    messages: list[message_pb2.Message] = []
    request = session_pb2.ListMessagesRequest(session_id=session, page_size=3)
    while True:
        page = await stubs.sessions.ListMessages(request)
        messages.extend(page.messages)
        if not page.next_page_token:
            return messages
        request.page_token = page.next_page_token
