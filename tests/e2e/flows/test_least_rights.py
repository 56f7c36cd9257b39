"""A server whose user has the shipped role alone: it uses each right of it, and needs no more."""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from tests import harness
from tests.builders import NOON
from tests.contracts.stores import TextCodec, until
from tests.contracts.test_store_audit import a_record
from tests.e2e.support.environment import AGENTS, until_event
from tests.guarded_database import SERVICE, GuardedDatabase, guarded_database, shipped_privileges
from tests.test_tools import ToolControl
from turnkeeper.domain.delegation import Delegation
from turnkeeper.pb.v1 import chat_pb2, operator_pb2, session_pb2
from turnkeeper.store.mongo.store import MongoStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATABASE = "turnkeeper"
SCRIPT = r"""
[[reply]]
match = '^do (?P<label>[\w-]+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "A story that takes its time, so that others can watch it while it is told."
chunk = 2
delay = "15ms"
"""
RIGHTS = {"create": "createCollection", "createIndexes": "createIndex", "insert": "insert", "find": "find"}
"""Of the commands that the database logs by themselves. Each statement of an update or a deletion is logged, too."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedDatabase]:
    """Starts a database that logs every command."""
    verbose = json.dumps({"command": {"verbosity": 1}, "write": {"verbosity": 1}})
    options = ("--setParameter", f"logComponentVerbosity={verbose}", "--setParameter", "maxLogSizeKB=512")
    async with guarded_database(tmp_path_factory.mktemp("guarded"), *options) as database:
        yield database


async def converse(stubs: harness.Stubs) -> str:
    """Runs a turn with an approved call and a long answer. Returns its session."""
    session = await harness.create_test_session(stubs, agent="asker")
    turn = await harness.send_message_to_session(stubs, session, "do d-1")
    await harness.decide(stubs, await harness.wait_for_approval(stubs, session))
    await harness.wait_for_turn(stubs, session, turn.turn_id)
    return session


async def watch_on_another(here: harness.Stubs, there: harness.Stubs, session: str) -> None:
    """Sends a message to one server, and returns once another one has shown a part of the answer."""
    request = chat_pb2.SendMessageRequest(
        session_id=session,
        request_id=harness.new_request_id(),
        content=harness.text_parts("a story"),
        wait=Duration(seconds=0),
    )
    turn = (await here.chat.SendMessage(request)).turn
    await until_event(there, session, "content_delta", turn_id=turn.turn_id)
    await harness.wait_for_turn(here, session, turn.turn_id)


async def lend_and_take_back(uri: str) -> None:
    """Lends authority twice and takes it back, by the store itself: it takes an identity to ask a server for that."""
    store = MongoStore(uri, database=DATABASE, codec=TextCodec(), replica="lender")
    try:
        await store.open()
        lent = Delegation(
            tenant=harness.TENANT, person="ada", delegate="bob", until=NOON + timedelta(days=3650), create_time=NOON
        )
        for _ in range(2):
            await store.put_delegation(lent, a_record(harness.TENANT))
        assert await store.remove_delegation(harness.TENANT, "ada", "bob", a_record(harness.TENANT))
    finally:
        await store.close()


def rights_of(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the collection and the right of each thing that one line of the database's log tells about."""
    command, collection = entry["command"], str(entry.get("ns", "")).partition(".")[2]
    verb = next(iter(command), "")
    if command.get("upsert"):
        yield collection, "insert"
    if entry.get("type") in ("update", "remove"):
        yield collection, entry["type"]
    elif verb == "findAndModify":
        yield collection, "update"
    elif verb == "listCollections":
        yield "", verb
    elif verb == "aggregate" and any("$changeStream" in stage for stage in command["pipeline"]):
        yield from (("", "changeStream"), ("", "find"))
    elif verb in RIGHTS:
        yield command[verb], RIGHTS[verb]


def used_rights(log: Path) -> set[tuple[str, str]]:
    """Returns the collection and the right of all that the service has needed, as the database logged it."""
    entries = [json.loads(line).get("attr", {}) for line in log.read_text(encoding="utf-8").splitlines()]
    return {
        used
        for entry in entries
        if str(entry.get("appName", "")).startswith("turnkeeper") and isinstance(entry.get("command"), dict)
        for used in rights_of(entry)
    }


async def test_each_right_of_the_role_is_used_and_no_other_is_needed(
    guarded: GuardedDatabase, tool_control: ToolControl
) -> None:
    settings: dict[str, Any] = {"agents": AGENTS, "purge_after": timedelta(milliseconds=1)}
    uri = guarded.uri(SERVICE)
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(uri, DATABASE, model, **settings) as first,
        harness.connect(first.address) as here,
        harness.serving(uri, DATABASE, model, **settings) as second,
        harness.connect(second.address) as there,
        guarded.admin() as admin,
    ):
        stored = admin[DATABASE]
        session = await converse(here)
        await watch_on_another(here, there, session)
        await here.operator.FreezeAdmission(operator_pb2.FreezeAdmissionRequest(reason="a try"))
        await here.operator.UnfreezeAdmission(operator_pb2.UnfreezeAdmissionRequest())
        await here.operator.DenyTool(operator_pb2.DenyToolRequest(pattern="x", reason="a try"))
        await here.operator.AllowTool(operator_pb2.AllowToolRequest(pattern="x"))
        await lend_and_take_back(uri)

        async def sealed() -> bool:
            records = stored["audit_records"]
            return await records.count_documents({"seal": {"$gt": 0}}) > 0

        async def purged() -> bool:
            return not await stored["heads"].count_documents({"tenant": harness.TENANT})

        await until(sealed, within=20)
        await here.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session))
        await until(purged, within=20)
        for name in ("sessions", "events", "turns", "tool_calls", "approvals", "requests", "partials"):
            assert await stored[name].count_documents({"tenant": harness.TENANT, "session_id": session}) == 0
    shipped = {
        (privilege["resource"]["collection"], action)
        for privilege in shipped_privileges(DATABASE)
        for action in privilege["actions"]
    }
    collections = {collection for collection, _ in shipped}
    used = {right for right in used_rights(guarded.log) if right[0] in collections}
    reads = {(collection, "find") for collection in collections}  # by the right on the whole database
    assert used | reads == shipped | reads
