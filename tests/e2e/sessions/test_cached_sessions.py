"""A session that a replica knows: its turns read nothing, and whatever others did to it in between is seen."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient, monitoring

from tests import harness
from tests.contracts.stores import until
from tests.e2e.support.environment import AGENTS, Environment, said
from tests.harness import Stubs
from tests.integration.mongo.commands import Command, Recorder, name_of
from tests.status_details import refused
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
async def elsewhere(env: Environment) -> AsyncIterator[Stubs]:
    async with env.another() as stubs:
        yield stubs


async def warm(stubs: Stubs, *words: str, session_id: str = "") -> str:
    """A session that this replica has created, with a turn for each of the words."""
    session = await harness.create_test_session(stubs, agent="talker", session_id=session_id)
    for each in words:
        await say(stubs, session, each)
    return session


async def say(stubs: Stubs, session: str, words: str, **more: Any) -> chat_pb2.Turn:
    turn = await harness.send_message_to_session(stubs, session, words, **more)
    assert turn.state == COMPLETED, turn
    return turn


def conversation(env: Environment, words: str) -> list[str]:
    """What the model was sent last with these words in it."""
    return [line for line in said(env.model_requests(words)[-1]) if not line.startswith("system: ")]


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
        session = await warm(stubs, *(f"w-{before}-{number}" for number in range(before)))
        with recorder.recording() as commands:
            await say(stubs, session, f"w-{before}-last")
            read = [each for each in commands if _decides(each)]
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        await client.drop_database(database)
    assert not read
    assert len(conversation(env, f"w-{before}-last")) == 2 * before + 1


def _decides(command: Command) -> bool:
    """A snapshot, a request's record, a conversation. (Claims aggregate heads as well, by `wake_at`.)"""
    found = command.get(name_of(command))
    if name_of(command) == "aggregate":
        return found == "heads" and "_id" in command["pipeline"][0]["$match"]
    return name_of(command) == "find" and (found == "requests" or (found == "events" and "kind" in command["filter"]))


# --- what others did in between ------------------------------------------------------------------------------------


async def test_turns_on_another_replica_are_part_of_the_conversation(env: Environment, elsewhere: Stubs) -> None:
    session = await warm(env.stubs, "w-turns one")
    await say(elsewhere, session, "w-turns two")
    await say(env.stubs, session, "w-turns three")
    await say(elsewhere, session, "w-turns four")
    assert conversation(env, "w-turns four") == [
        "user: w-turns one",
        "assistant: You said: w-turns one",
        "user: w-turns two",
        "assistant: You said: w-turns two",
        "user: w-turns three",
        "assistant: You said: w-turns three",
        "user: w-turns four",
    ]


async def test_a_restoration_on_another_replica_is_seen(env: Environment, elsewhere: Stubs) -> None:
    session = await warm(env.stubs, "w-restored one")
    place = (await harness.all_events(env.stubs, session))[-1].sequence
    await say(env.stubs, session, "w-restored two")
    await elsewhere.sessions.RestoreCheckpoint(session_pb2.RestoreCheckpointRequest(session_id=session, sequence=place))
    await say(env.stubs, session, "w-restored three")
    assert conversation(env, "w-restored three") == [
        "user: w-restored one",
        "assistant: You said: w-restored one",
        "user: w-restored three",
    ]


async def test_what_suspends_elsewhere_refuses_here_and_what_resumes_there_is_accepted_here(
    env: Environment, elsewhere: Stubs
) -> None:
    session = await warm(env.stubs, "w-suspended one")
    await elsewhere.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=session))
    with refused("SESSION_SUSPENDED"):
        await say(env.stubs, session, "w-suspended two")
    await elsewhere.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=session))
    await env.stubs.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=session))
    await elsewhere.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=session))
    await say(env.stubs, session, "w-suspended three")  # what is kept here says suspended still


async def test_a_turn_that_runs_elsewhere_refuses_here(env: Environment, elsewhere: Stubs) -> None:
    session = await harness.create_test_session(env.stubs, agent="worker")
    running = await harness.send_message_to_session(elsewhere, session, "hold w-running", wait=0)
    await env.tool_control.started("w-running")
    with refused("TURN_IN_PROGRESS") as refusal:
        await say(env.stubs, session, "w-running two")
    assert refusal.details.metadata["turn_id"] == running.turn_id
    env.tool_control.release("w-running")
    await harness.wait_for_turn(elsewhere, session, running.turn_id)
    await say(env.stubs, session, "w-running three")


async def test_a_session_deleted_elsewhere_is_gone_here(env: Environment, elsewhere: Stubs) -> None:
    session = await warm(env.stubs, "w-deleted one")
    await elsewhere.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session))
    with refused("SESSION_NOT_FOUND"):
        await say(env.stubs, session, "w-deleted two")
    await elsewhere.sessions.UndeleteSession(session_pb2.UndeleteSessionRequest(session_id=session))
    await say(env.stubs, session, "w-deleted three")


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_new_session_of_the_same_id_has_nothing_of_the_purged_one(env: Environment, turns: int) -> None:
    """Its numbers are the same as those of the session that is kept here: nothing but the head's own number differs."""
    name = f"w-purged-{turns}"
    async with env.another(purge_after=timedelta(milliseconds=1), sweep=timedelta(milliseconds=30)) as purger:
        await warm(env.stubs, *(f"{name} old" for _ in range(turns)), session_id=name)
        await purger.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=name))

        async def made_again() -> bool:
            try:
                await harness.create_test_session(purger, agent="worker", session_id=name)
            except Exception:  # noqa: BLE001 - until it is purged the id is taken
                return False
            return True

        await until(made_again)
        for _ in range(turns):
            await say(purger, name, f"{name} new")
        await say(env.stubs, name, f"{name} last")
    expected = [line for _ in range(turns) for line in (f"user: {name} new", f"assistant: You said: {name} new")]
    assert conversation(env, f"{name} last") == [*expected, f"user: {name} last"]
    found = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=name))
    assert found.session.agent == "worker"


# --- repeats -------------------------------------------------------------------------------------------------------


async def test_a_repeat_on_a_known_session_is_the_first_ones_turn(env: Environment, elsewhere: Stubs) -> None:
    session = await warm(env.stubs, "w-repeat one")
    first = await say(env.stubs, session, "w-repeat two", request_id="again")
    await say(env.stubs, session, "w-repeat three")
    for stubs in (env.stubs, env.stubs, elsewhere):
        assert (await say(stubs, session, "w-repeat two", request_id="again")).turn_id == first.turn_id
        with refused("REQUEST_ID_REUSED"):
            await say(stubs, session, "w-repeat another", request_id="again")
    await say(env.stubs, session, "w-repeat four")
    with refused("REQUEST_ID_REUSED"):
        await say(env.stubs, session, "w-repeat another", request_id="again")
    assert len(env.model_requests("w-repeat two")) == 3, "the turns two, three and four"


async def test_at_once_on_two_replicas_that_know_the_session_it_is_one_turn(env: Environment, elsewhere: Stubs) -> None:
    session = await warm(env.stubs, "w-once")
    for number in range(5):
        servers = (env.stubs, elsewhere, env.stubs, elsewhere)
        turns = await asyncio.gather(
            *(say(stubs, session, f"w-once {number}", request_id=f"once {number}") for stubs in servers)
        )
        assert len({turn.turn_id for turn in turns}) == 1
    page = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
    assert len(page.messages) == 12


# --- lists ---------------------------------------------------------------------------------------------------------


async def test_both_replicas_list_the_same_messages_at_any_time(env: Environment, elsewhere: Stubs) -> None:
    session = await warm(env.stubs)
    for number in range(4):
        await say((env.stubs, elsewhere)[number % 2], session, f"w-listed {number}")
        here, there = await _listed(env.stubs, session), await _listed(elsewhere, session)
        assert here == there
        assert len(here) == 2 * (number + 1)


async def _listed(stubs: Stubs, session: str) -> list[message_pb2.Message]:
    """All pages, each of three."""
    found: list[message_pb2.Message] = []
    request = session_pb2.ListMessagesRequest(session_id=session, page_size=3)
    while True:
        page = await stubs.sessions.ListMessages(request)
        found.extend(page.messages)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token
