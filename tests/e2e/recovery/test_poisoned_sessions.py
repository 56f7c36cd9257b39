"""Sessions that an earlier version could not go on with work under this one, and what is stored in them is readable.

Each file holds the documents of one session as that version left them: with a result nested 980 levels deep, with
counts of tokens at the limit of 64 bits, or with a turn whose every attempt broke on a schema of its caller.
"""

from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from bson import json_util
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import Environment
from turnkeeper.pb.v1 import chat_pb2, session_pb2

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
