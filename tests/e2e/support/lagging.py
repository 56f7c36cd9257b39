"""A server whose reads lag behind what was acknowledged, as those of a new primary do for a moment.

They read the database as it was at one time, by MongoDB's snapshot reads. Linearizable reads and writes are as ever.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest_asyncio
from motor.motor_asyncio import AsyncIOMotorClientSession
from pymongo.read_concern import ReadConcern

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from tests.harness import Stubs
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2
from turnkeeper.store.changeset import Changeset, CommitResult
from turnkeeper.store.mongo.client import Collection, Connection
from turnkeeper.store.mongo.consistent_reads import InSession, Read
from turnkeeper.store.mongo.store import MongoStore


class LaggingStore(MongoStore):
    """A store whose reads show the past between `lag` and `catch_up`.

    None shows less than a commit of this store.
    """

    _past: AsyncIOMotorClientSession | None = None
    _only: frozenset[str] = frozenset()
    certain_reads = 0
    """How many reads were linearizable while the others lagged."""

    async def lag(self, *, only: frozenset[str] = frozenset()) -> None:
        """Lets reads show the database as it is now, whatever is stored from now on.

        `only` names the reads that lag, as the metrics of the store's calls name them; empty for all.
        """
        self._only = only
        past = await self._connection.client.start_session(snapshot=True)
        await _past(self._connection.heads, past, self._connection).find_one({})
        self._past = past

    async def catch_up(self) -> None:
        """Lets reads show everything again."""
        self._past = None

    async def commit(self, changeset: Changeset) -> CommitResult:
        result = await super().commit(changeset)
        if self._past is not None and not self._only:
            await self.lag()
        return result

    @contextlib.contextmanager
    def _reading(self, operation: str) -> Iterator[Read]:
        with super()._reading(operation) as read:
            past = self._past
            if past is None or (self._only and operation not in self._only):
                yield read
            elif self._consistent_reads.is_linearizable:
                self.certain_reads += 1
                yield read
            else:
                yield lambda collection: _past(collection, past, self._connection)


def _past(collection: Collection, session: AsyncIOMotorClientSession, connection: Connection) -> InSession:
    """Returns the collection as it was when the session began."""
    return InSession(collection.with_options(read_concern=ReadConcern("snapshot")), session, connection)


SCRIPT = r"""
[[reply]]
match = '^do (?P<label>[\w-]+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^look (?P<label>[\w-]+)'
after_tools = 0
tool_calls = [{ name = "look", arguments = { at = "{label}" } }]

[[reply]]
match = '^break'
fail = "refuse"

[[reply]]
match = '^hold (?P<label>[\w-]+)'
after_tools = 0
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
SETTINGS: dict[str, Any] = {"heartbeat": timedelta(milliseconds=300)}
LOOK = chat_pb2.ClientTool(name="look", description="Look.", schema_json='{"type":"object"}')
COMPLETED = chat_pb2.TURN_STATE_COMPLETED


@dataclass(slots=True)
class Lagging:
    """A server whose reads lag, and its store."""

    stubs: Stubs
    store: LaggingStore


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(env: Environment) -> AsyncIterator[Lagging]:
    """It claims no turn: all its room is for those that it accepts itself."""
    stores: list[LaggingStore] = []

    def new_store(*args: Any, **settings: Any) -> LaggingStore:
        stores.append(LaggingStore(*args, **settings))
        return stores[0]

    quiet: dict[str, Any] = {**env.settings, "concurrency": 1, "sweep": timedelta(hours=1), "poll": timedelta(hours=1)}
    async with (
        harness.serving(env.mongo_uri, env.database, env.model, agents=AGENTS, new_store=new_store, **quiet) as running,
        harness.connect(running.address) as stubs,
    ):
        yield Lagging(stubs, stores[0])


@pytest_asyncio.fixture(loop_scope="module")
async def lagging(behind: Lagging) -> AsyncIterator[Lagging]:
    behind.store.certain_reads = 0
    yield behind
    await behind.store.catch_up()


async def session_of(stubs: Stubs, agent: str = "asker") -> str:
    return await harness.create_test_session(stubs, agent=agent)


async def sent(stubs: Stubs, session: str, text: str, **fields: Any) -> chat_pb2.Turn:
    return await harness.send_message_to_session(stubs, session, text, **fields)


async def first_of_watch(stubs: Stubs, session: str, **fields: Any) -> session_pb2.WatchEventsResponse:
    request = session_pb2.WatchEventsRequest(session_id=session, **fields)
    call = stubs.sessions.WatchEvents(request)
    try:
        async for response in call:
            return response
    finally:
        call.cancel()
    raise AssertionError("the stream ended without a response")


async def list_events(stubs: Stubs, session: str, **start: Any) -> session_pb2.ListEventsResponse:
    return await stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session, **start))


async def approval_of(stubs: Stubs, turn: chat_pb2.Turn) -> approval_pb2.Approval:
    request = approval_pb2.GetApprovalRequest(approval_id=turn.pending[0].approval_id)
    return (await stubs.approvals.GetApproval(request)).approval
