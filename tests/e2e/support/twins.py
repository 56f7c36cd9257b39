"""Sessions that a server has stored, and copies of them in another tenant under the ids of a test's own sessions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.write_concern import WriteConcern

from tests import harness
from turnkeeper import ids
from turnkeeper.pb.v1 import chat_pb2, event_pb2

Document = dict[str, Any]

COLLECTIONS: Final = ("events", "turns", "tool_calls", "approvals", "requests", "sessions", "heads")
"""Where the documents of a session are. The head is stored last: a server finds the session by it."""
UNANSWERED: Final = WriteConcern(0)
AGENTS: Final = """
[[agent]]
name = "teller"
tools = ["current_time"]
[[agent.policy]]
tool = "current_time"
action = "approve"
"""
SCRIPT: Final = """
[[reply]]
after_tools = 0
tool_calls = [{ name = "current_time" }]

[[reply]]
text = "A foreign answer."
"""


class Recorded:
    """A session as it is stored."""

    def __init__(self, session_id: str, documents: Mapping[str, Sequence[Document]]) -> None:
        self._session_id = session_id
        self._documents = documents

    @classmethod
    async def read(cls, client: AsyncMongoClient[Document], database: str, session_id: str) -> "Recorded":
        """Reads the session's documents."""
        match = {"$or": [{"session_id": session_id}, {"_id.session_id": session_id}]}
        documents = {name: await client[database][name].find(match).to_list() for name in COLLECTIONS}
        assert all(documents.values()), documents
        return cls(session_id, documents)

    @property
    def counts(self) -> Counter[str]:
        """Returns the number of documents by collection."""
        return Counter({name: len(documents) for name, documents in self._documents.items()})

    def copy(self, tenant: str, session_id: str) -> Mapping[str, Sequence[Document]]:
        """Returns the documents of a session in this tenant that differs in nothing but its ids."""
        approvals = [approval["id"] for approval in self._documents["approvals"]]
        names = {name: ids.derived(tenant, session_id, name) for name in approvals} | {self._session_id: session_id}
        return {
            name: [_renamed(document, tenant, names) for document in documents]
            for name, documents in self._documents.items()
        }


def _renamed(value: Any, tenant: str, names: Mapping[str, str]) -> Any:
    match value:
        case dict():
            return {
                key: tenant if key == "tenant" else _renamed(content, tenant, names)
                for key, content in value.items()
                if not isinstance(content, ObjectId)
            }
        case list():
            return [_renamed(item, tenant, names) for item in value]
        case str():
            return names.get(value, value)
        case bytes():
            return _renamed_event(value, names)
        case _:
            return value


def _renamed_event(payload: bytes, names: Mapping[str, str]) -> bytes:
    event = event_pb2.Event.FromString(payload)
    event.session_id = names[event.session_id]
    renamed = event.SerializeToString()
    for name, other in names.items():
        if len(name) == len(other):  # a text of another length would need its length before it changed
            renamed = renamed.replace(name.encode(), other.encode())
    return renamed


async def record(mongo_uri: str, database: str, folder: Path) -> Sequence[Recorded]:
    """Has a server store two sessions: one is at rest; the other's turn waits for an approval, and one is queued."""
    agents = folder / "agents.toml"
    agents.write_text(AGENTS)
    resting, waiting = "twin-at-rest", "twin-that-waits"
    async with (
        AsyncMongoClient[Document](mongo_uri) as client,
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database, model, agents=agents) as running,
        harness.connect(running.address) as stubs,
    ):
        for session in (resting, waiting):
            await harness.create_test_session(stubs, agent="teller", session_id=session)
            turn = await harness.send_message_to_session(stubs, session, "Foreign words.")
            assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL, turn
        await harness.send_message_to_session(
            stubs, waiting, "Foreign words for later.", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )
        await harness.decide(stubs, await harness.wait_for_approval(stubs, resting))
        (turn,) = (await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=resting))).turns
        turn = await harness.wait_for_turn(stubs, resting, turn.turn_id)
        assert harness.answer_of(turn) == "A foreign answer.", turn
        recorded = [await Recorded.read(client, database, name) for name in (resting, waiting)]
        await client.drop_database(database)
    return recorded


class Twins:
    """Stores copies of recorded sessions, and keeps count of them."""

    def __init__(self, tenant: str, recorded: Sequence[Recorded], *, shared: str) -> None:
        """`shared`: the address of the tests' database, which stays connected when a server ends."""
        self._tenant = tenant
        self._shared = shared
        self._next = cycle(recorded)
        self._clients: dict[str, MongoClient[Document]] = {}
        self._stored: dict[str, dict[str, Recorded]] = {}
        """By the name of a database, which may be started again at another address."""

    def store(self, mongo_uri: str, database: str, session_id: str) -> None:
        """Stores the next of the recorded sessions under this id, unless the database has one of it.

        One round trip: the inserts are sent on one connection, and only the head's is answered. In a database of a
        test's own, which may be killed, all of them are in the journal by then.
        """
        stored = self._stored.setdefault(database, {})
        if session_id in stored:
            return
        stored[session_id] = next(self._next)
        if mongo_uri not in self._clients:
            self._clients[mongo_uri] = MongoClient(
                mongo_uri, maxPoolSize=1, serverSelectionTimeoutMS=2_000, timeoutMS=5_000
            )
        documents = stored[session_id].copy(self._tenant, session_id)
        answered = WriteConcern(1) if mongo_uri == self._shared else WriteConcern("majority", j=True)
        for name in COLLECTIONS:
            concern = answered if name == COLLECTIONS[-1] else UNANSWERED
            collection = self._clients[mongo_uri][database].get_collection(name, write_concern=concern)
            collection.insert_many(documents[name])

    def expected(self, database: str, *, trimmed: Sequence[str] = ()) -> Counter[str]:
        """Returns how many documents the tenant has in this database, by collection.

        `trimmed`: sessions whose events are not counted.
        """
        expected = Counter[str]()
        for session_id, recorded in self._stored.get(database, {}).items():
            expected += recorded.counts
            if session_id in trimmed:
                expected["events"] -= recorded.counts["events"]
        return expected

    def server_ended(self, mongo_uri: str) -> None:
        """Disconnects from a database that the server has had for itself: it may end now, too."""
        if mongo_uri != self._shared:
            self.disconnect(mongo_uri)

    def disconnect(self, mongo_uri: str) -> None:
        """Disconnects from this database, if there is a connection."""
        client = self._clients.pop(mongo_uri, None)
        if client is not None:
            client.close()
