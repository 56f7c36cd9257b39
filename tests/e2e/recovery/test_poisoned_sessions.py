"""Sessions that an earlier version could not go on with work under this one, and what is stored in them is readable.

Each file holds the documents of one session as that version left them: with a result nested 980 levels deep, with
counts of tokens at the limit of 64 bits, or with a turn whose every attempt broke on a schema of its caller.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from bson import json_util
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from turnkeeper import agents_file
from turnkeeper.domain.session import SessionKey
from turnkeeper.pb.v1 import agent_pb2, chat_pb2, session_pb2
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.documents import SCHEMA, encode

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILES = sorted(Path(__file__).with_name("poisoned").glob("*.json"))
SETTINGS: dict[str, Any] = {"concurrency": 8}
SCRIPT = f"""
[[reply]]
match = "use a lot"
text = "A lot was used."
usage = {{ input_tokens = {2**63 - 1}, output_tokens = {2**63 - 1} }}

[[reply]]
match = "bad reference"
tool_calls = [{{ name = "look", arguments = {{ a = 1 }} }}]

[[reply]]
match = "huge number"
tool_calls = [{{ name = "count", arguments = '{{"a": {"1" * 400}}}' }}]

[[reply]]
text = "You said: {{user}} {{tool_result}}"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def poisoned(env: Environment) -> None:
    """Stores the documents of every file."""
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        database = client[env.database]
        for file in FILES:
            stored: dict[str, list[dict[str, Any]]] = json_util.loads(file.read_text(encoding="utf-8"))
            for collection, documents in stored.items():
                for document in documents:
                    await database[collection].replace_one({"_id": document["_id"]}, document, upsert=True)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("session", [file.stem for file in FILES])
async def test_a_poisoned_session_works_after_the_upgrade(env: Environment, session: str) -> None:
    turns = await env.stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))
    last = await harness.wait_for_turn(env.stubs, session, turns.turns[0].turn_id)
    assert last.state == chat_pb2.TURN_STATE_COMPLETED, last.error
    after = await harness.send_message_to_session(env.stubs, session, "hello again")
    assert (after.state, harness.answer_of(after)) == (chat_pb2.TURN_STATE_COMPLETED, "You said: hello again ")
    listed = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
    assert listed.messages[-1].content[0].text == "You said: hello again "
    stored = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
    assert stored.session.usage.input_tokens >= after.usage.input_tokens
    assert not stored.session.active_turn_id


@pytest.mark.usefixtures("poisoned")
async def test_what_is_stored_deeper_than_is_taken_stays_readable(env: Environment) -> None:
    messages = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id="deep-result"))
    assert "[" * 980 + "]" * 980 in [part.text for message in messages.messages for part in message.content]


async def test_b4_a_stored_version_with_a_limit_that_no_message_holds_can_be_listed_shown_and_run(
    env: Environment,
) -> None:
    """An agents file could hold any number before it had bounds."""
    talker = agents_file.load(AGENTS, default_model="scripted")["talker"]
    poison = replace(talker, limits=replace(talker.limits, max_iterations=2**31, max_attempts=2**62))
    session = await harness.create_test_session(env.stubs, agent="talker")
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        database = client[env.database]
        fields = {"tenant": "default", "version": poison.version, "schema": SCHEMA}
        key = keys.of_agent("default", "talker", poison.version)
        its = keys.where(keys.of_session(SessionKey("default", session)))
        await database.agents.insert_one({"_id": key, **encode(poison), **fields})
        pinned = await database.sessions.find_one_and_update(its, {"$set": {"agent_version": poison.version}})
        await database.heads.update_one(its, {"$inc": {"revision": 1}})  # what is cached is old
        turn = await harness.send_message_to_session(env.stubs, session, "hello")
        assert (turn.state, harness.answer_of(turn)) == (chat_pb2.TURN_STATE_COMPLETED, "You said: hello ")
        assert pinned is not None
        log_has = {"$set": {"agent_version": pinned["agent_version"]}}
        assert (await database.sessions.update_one(its, log_has)).modified_count == 1
    listed = await env.stubs.agents.ListAgents(agent_pb2.ListAgentsRequest())
    assert "talker" in [agent.name for agent in listed.agents]
    request = agent_pb2.GetAgentRequest(name="talker", version=poison.version)
    shown = (await env.stubs.agents.GetAgent(request)).agent
    assert (shown.version, shown.limits.max_iterations) == (poison.version, 2**31 - 1)
