"""The writes of one transaction, and how they are sent: all in one thread's hands, one command after the other.

Each statement must change what it names; what does not stops the transaction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from pymongo.errors import PyMongoError, ServerSelectionTimeoutError, WriteError

from turnkeeper.faults import fault
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.next_schema import stamped

DUPLICATE_KEY: Final = 11000
STATEMENTS: Final = 100
"""Most of one command: a command is at most 48 MB."""

_VERBS: Final = {"insert": "documents", "update": "updates", "delete": "deletes"}


class Obstacle(Enum):
    """Why a transaction was not simply committed."""

    MISS = "miss"
    """A filter matched less than it should, or an insert met its like. Nothing was stored."""
    CONFLICT = "conflict"
    """Another transaction was in the way, or the connection broke before the commit. Nothing was stored."""
    UNKNOWN = "unknown"
    """The commit was sent; nobody said what became of it."""


class Stopped(Exception):
    """The transaction cannot go on as it is. `culprit`: whose insert met its like, as `Writes.of` had it."""

    def __init__(self, obstacle: Obstacle, culprit: object = None) -> None:
        super().__init__(obstacle)
        self.obstacle = obstacle
        self.culprit = culprit


@dataclass(slots=True)
class _Statements:
    """What one verb does to one collection. `counted`: each must find its document."""

    verb: str
    collection: str
    statements: list[Document] = field(default_factory=list)
    writers: list[object] = field(default_factory=list)
    counted: bool = True


class Writes:
    """Collects the writes of one transaction; those of a kind to one collection are one command.

    Commands are sent in the order of their first statements: begin with what is most likely to be refused.
    """

    def __init__(self, *, schema: int, faulty: bool = False) -> None:
        """`schema`: the one that is written. `faulty`: it passes the fault points of a step."""
        self.arrived = False
        """The database may know of the transaction."""
        self._schema = schema
        self._faulty = faulty
        self._writer: object = None
        self._all: dict[tuple[str, str, bool], _Statements] = {}

    def of(self, writer: object) -> "Writes":
        """The writes that follow are this one's."""
        self._writer = writer
        return self

    def insert(self, collection: str, *documents: Document) -> None:
        """New documents, none of which may exist."""
        for document in documents:
            self._add("insert", collection, self._stamped(document))

    def update(self, collection: str, match: Document, fields: Document) -> None:
        """`$set` on exactly one document."""
        self._add("update", collection, {"q": match, "u": {"$set": self._stamped(fields)}})

    def compute(self, collection: str, match: Document, pipeline: Sequence[Document]) -> None:
        """A pipeline on exactly one document."""
        stamp = self._stamped({})
        self._add("update", collection, {"q": match, "u": [*pipeline, {"$set": stamp}] if stamp else pipeline})

    def update_where(self, collection: str, match: Document, fields: Document) -> None:
        """`$set` on all that match, none included."""
        statement = {"q": match, "u": {"$set": self._stamped(fields)}, "multi": True}
        self._add("update", collection, statement, counted=False)

    def delete(self, collection: str, *matches: Document) -> None:
        """What another transaction removed already is no miss."""
        for match in matches:
            self._add("delete", collection, {"q": match, "limit": 1}, counted=False)

    def send(self, connection: Connection, session: ClientSession) -> None:
        """All of them, in this thread. Raises Stopped and PyMongoError."""
        for number, (of, first) in enumerate(self._commands()):
            self._send(connection, session, of, first)
            if number == 0:
                self.pass_by("step.after_first_write")

    def pass_by(self, place: str) -> None:
        """A fault point of steps."""
        if self._faulty:
            fault(place)

    def _commands(self) -> Iterator[tuple[_Statements, int]]:
        for each in self._all.values():
            for first in range(0, len(each.statements), STATEMENTS):
                yield each, first

    def _add(self, verb: str, collection: str, statement: Document, *, counted: bool = True) -> None:
        key = (verb, collection, counted)
        all_of = self._all.get(key)
        if all_of is None:
            all_of = self._all[key] = _Statements(verb, collection, counted=counted)
        all_of.statements.append(statement)
        all_of.writers.append(self._writer)

    def _stamped(self, fields: Document) -> Document:
        return stamped(fields, schema=self._schema)

    def _send(self, connection: Connection, session: ClientSession, of: _Statements, first: int) -> None:
        statements = of.statements[first : first + STATEMENTS]
        database: Any = connection.database.delegate
        try:
            reply: Document = database.command(
                {of.verb: of.collection, _VERBS[of.verb]: statements}, session=session.delegate
            )
        except PyMongoError as error:
            self.arrived |= not isinstance(error, ServerSelectionTimeoutError)
            raise
        self.arrived = True
        if errors := reply.get("writeErrors"):
            if errors[0]["code"] == DUPLICATE_KEY:
                raise Stopped(Obstacle.MISS, of.writers[first + errors[0]["index"]])
            raise WriteError("", errors[0]["code"])
        if of.counted and reply["n"] != len(statements):
            raise Stopped(Obstacle.MISS)
