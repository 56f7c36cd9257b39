"""Collects the writes of one transaction and sends them: in one thread, one command after the other.

Each statement must change the document that it names; one that does not stops the transaction.
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
"""Statements of one command, at most: a command may have 48 MB."""

_VERBS: Final = {"insert": "documents", "update": "updates", "delete": "deletes"}


class Obstacle(Enum):
    """Why a transaction was not committed, or may not have been."""

    MISS = "miss"
    """A filter matched fewer documents than it should, or an insert hit a duplicate key. Nothing was stored."""
    CONFLICT = "conflict"
    """Another transaction wrote the same documents, or the connection broke before the commit. Nothing was stored."""
    UNKNOWN = "unknown"
    """The commit was sent, and its outcome is unknown."""


class Stopped(Exception):
    """The transaction cannot continue. `culprit`: whose insert hit a duplicate key, as given to `Writes.of`."""

    def __init__(self, obstacle: Obstacle, culprit: object = None) -> None:
        super().__init__(obstacle)
        self.obstacle = obstacle
        self.culprit = culprit


@dataclass(slots=True)
class _Statements:
    """The statements of one verb on one collection. `counted`: each must find its document."""

    verb: str
    collection: str
    statements: list[Document] = field(default_factory=list)
    writers: list[object] = field(default_factory=list)
    counted: bool = True


class Writes:
    """Collects the writes of one transaction. Those of the same verb on one collection are one command.

    Commands are sent in the order of their first statements: add the write that is most likely to be refused first.
    """

    def __init__(self, *, schema: int, faulty: bool = False) -> None:
        """`schema`: the one that is written. `faulty`: the transaction passes the fault points `step.*`."""
        self.arrived = False
        """A command was sent: the transaction may exist in the database."""
        self._schema = schema
        self._faulty = faulty
        self._writer: object = None
        self._all: dict[tuple[str, str, bool], _Statements] = {}

    def of(self, writer: object) -> "Writes":
        """Attributes the writes that follow to this writer. Returns self."""
        self._writer = writer
        return self

    def insert(self, collection: str, *documents: Document) -> None:
        """Inserts new documents, none of which may exist."""
        for document in documents:
            self._add("insert", collection, self._stamped(document))

    def update(self, collection: str, match: Document, fields: Document) -> None:
        """Sets fields of exactly one document."""
        self._add("update", collection, {"q": match, "u": {"$set": self._stamped(fields)}})

    def compute(self, collection: str, match: Document, pipeline: Sequence[Document]) -> None:
        """Updates exactly one document by a pipeline."""
        stamp = self._stamped({})
        self._add("update", collection, {"q": match, "u": [*pipeline, {"$set": stamp}] if stamp else pipeline})

    def update_where(self, collection: str, match: Document, fields: Document) -> None:
        """Sets fields of all documents that match; there may be none."""
        statement = {"q": match, "u": {"$set": self._stamped(fields)}, "multi": True}
        self._add("update", collection, statement, counted=False)

    def delete(self, collection: str, *matches: Document) -> None:
        """Deletes one document for each match. One that is gone already is no miss."""
        for match in matches:
            self._add("delete", collection, {"q": match, "limit": 1}, counted=False)

    def send(self, connection: Connection, session: ClientSession) -> None:
        """Sends all writes, blocking this thread. Raises Stopped and PyMongoError."""
        for number, (group, first) in enumerate(self._commands()):
            self._send(connection, session, group, first)
            if number == 0:
                self.pass_by("step.after_first_write")

    def pass_by(self, place: str) -> None:
        """Passes a fault point, if the transaction is `faulty`."""
        if self._faulty:
            fault(place)

    def _commands(self) -> Iterator[tuple[_Statements, int]]:
        for group in self._all.values():
            for first in range(0, len(group.statements), STATEMENTS):
                yield group, first

    def _add(self, verb: str, collection: str, statement: Document, *, counted: bool = True) -> None:
        key = (verb, collection, counted)
        group = self._all.get(key)
        if group is None:
            group = self._all[key] = _Statements(verb, collection, counted=counted)
        group.statements.append(statement)
        group.writers.append(self._writer)

    def _stamped(self, fields: Document) -> Document:
        return stamped(fields, schema=self._schema)

    def _send(self, connection: Connection, session: ClientSession, group: _Statements, first: int) -> None:
        statements = group.statements[first : first + STATEMENTS]
        database: Any = connection.database.delegate
        try:
            reply: Document = database.command(
                {group.verb: group.collection, _VERBS[group.verb]: statements}, session=session.delegate
            )
        except PyMongoError as error:
            self.arrived |= not isinstance(error, ServerSelectionTimeoutError)
            raise
        self.arrived = True
        if errors := reply.get("writeErrors"):
            if errors[0]["code"] == DUPLICATE_KEY:
                raise Stopped(Obstacle.MISS, group.writers[first + errors[0]["index"]])
            raise WriteError("", errors[0]["code"])
        if group.counted and reply["n"] != len(statements):
            raise Stopped(Obstacle.MISS)
