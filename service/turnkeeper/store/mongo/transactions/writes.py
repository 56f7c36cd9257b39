"""Collects the writes of one transaction, and sends them in one thread.

A statement that does not find its document stops the transaction, unless its method allows that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pymongo.errors import DocumentTooLarge, PyMongoError, ServerSelectionTimeoutError, WriteError

from turnkeeper.faults import fault, is_armed
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.next_schema import stamped
from turnkeeper.store.mongo.transactions.pipeline import CommandExchange

DUPLICATE_KEY: Final = 11000
"""MongoDB's code of an error by a unique index."""
AFTER_FIRST: Final = "step.after_first_write"
"""A fault point. While it is armed, the first command is sent by itself."""
MAX_STATEMENTS: Final = 100
"""Statements of one command, at most. One that is still too large for the driver is sent in parts."""

_VERBS: Final = {"insert": "documents", "update": "updates", "delete": "deletes"}

_FIRST: Final = ("insert", "heads", True)
"""The group of statements that is sent first; see `Writes`."""


class Obstacle(Enum):
    """Why a transaction was not committed, or may not have been."""

    MISS = "miss"
    """A filter matched fewer documents than it should, or an insert hit a duplicate key. Nothing was stored."""
    CONFLICT = "conflict"
    """Another transaction wrote the same documents, or the connection broke before the commit. Nothing was stored."""
    UNKNOWN = "unknown"
    """The commit was sent, and its outcome is unknown."""


class TransactionStopped(Exception):
    """The transaction cannot continue."""

    def __init__(self, obstacle: Obstacle, refused_writer: object = None) -> None:
        """`refused_writer`: the writer, as given to `Writes.of`, whose insert hit a duplicate key; None if unknown."""
        super().__init__(obstacle)
        self.obstacle = obstacle
        self.refused_writer = refused_writer


@dataclass(slots=True)
class _Statements:
    """The statements of one verb on one collection."""

    verb: str
    collection: str
    statements: list[Document] = field(default_factory=list)
    writers: list[object] = field(default_factory=list)
    """The writer of each statement; see `Writes.of`."""
    counted: bool = True
    """Each statement must find its document."""


@dataclass(frozen=True, slots=True)
class _Command:
    """Statements of a group that are sent as one command."""

    group: _Statements
    part: range

    def document(self) -> Document:
        statements = self.group.statements[self.part.start : self.part.stop]
        return {self.group.verb: self.group.collection, _VERBS[self.group.verb]: statements}

    def halves(self) -> Sequence["_Command"]:
        middle = len(self.part) // 2
        return [_Command(self.group, half) for half in (self.part[:middle], self.part[middle:])] if middle else []

    def is_done(self, reply: Document) -> bool:
        return not reply.get("writeErrors") and (not self.group.counted or reply["n"] == len(self.part))

    def check(self, reply: Document) -> None:
        """Raises TransactionStopped if a document was not found or exists already, WriteError for other errors."""
        if self.is_done(reply):
            return
        if errors := reply.get("writeErrors"):
            if errors[0]["code"] == DUPLICATE_KEY:
                raise TransactionStopped(Obstacle.MISS, self.group.writers[self.part.start + errors[0]["index"]])
            raise WriteError("", errors[0]["code"])
        raise TransactionStopped(Obstacle.MISS)


class Writes:
    """Collects the writes of one transaction. Writes of one verb on one collection are sent together.

    Commands are sent in the order of their first writes; inserts of heads come before all others, because updates of
    these heads may follow. Add the write that is most likely to be refused first.
    """

    def __init__(self, *, schema: int, has_fault_points: bool = False) -> None:
        """`schema` is stamped on each document. With `has_fault_points`, fault points `step.*` are passed."""
        self.was_sent = False
        """True once a command may have reached the database: the transaction may be open there."""
        self._schema = schema
        self._has_fault_points = has_fault_points
        self._writer: object = None
        self._groups: dict[tuple[str, str, bool], _Statements] = {_FIRST: _Statements(*_FIRST[:2])}

    def of(self, writer: object) -> "Writes":
        """Attributes the writes that follow to this writer. Returns self."""
        self._writer = writer
        return self

    def insert(self, collection: str, *documents: Document) -> None:
        """Adds inserts of new documents. One whose key exists stops the transaction with MISS."""
        for document in documents:
            self._add("insert", collection, self._stamped(document))

    def update(self, collection: str, match: Document, fields: Document) -> None:
        """Adds an update that sets fields of exactly one document. No match stops the transaction with MISS."""
        self._add("update", collection, {"q": match, "u": {"$set": self._stamped(fields)}})

    def compute(self, collection: str, match: Document, pipeline: Sequence[Document]) -> None:
        """Adds an update of exactly one document by a pipeline. No match stops the transaction with MISS."""
        stamp = self._stamped({})
        self._add("update", collection, {"q": match, "u": [*pipeline, {"$set": stamp}] if stamp else pipeline})

    def update_where(self, collection: str, match: Document, fields: Document) -> None:
        """Adds an update that sets fields of all documents that match; there may be none."""
        statement = {"q": match, "u": {"$set": self._stamped(fields)}, "multi": True}
        self._add("update", collection, statement, counted=False)

    def compute_where(self, collection: str, match: Document, fields: Document) -> None:
        """Adds an update that sets fields of all documents that match to expressions; there may be none."""
        statement = {"q": match, "u": [{"$set": self._stamped(fields)}], "multi": True}
        self._add("update", collection, statement, counted=False)

    def delete(self, collection: str, *matches: Document) -> None:
        """Adds a deletion of one document for each match; a document may be deleted already."""
        for match in matches:
            self._add("delete", collection, {"q": match, "limit": 1}, counted=False)

    def send(self, exchange: CommandExchange) -> None:
        """Sends all writes, blocking this thread.

        Raises TransactionStopped if a write did not find its document or hit a duplicate key, PyMongoError if a command
        failed.
        """
        commands = list(self._commands())
        if self._has_fault_points and is_armed(AFTER_FIRST):
            self._send(exchange, commands[:1])  # so that the rest is not written yet
            fault(AFTER_FIRST)
            commands = commands[1:]
        self._send(exchange, commands)

    def pass_fault_point(self, name: str) -> None:
        """Passes a fault point if the transaction has them."""
        if self._has_fault_points:
            fault(name)

    def _commands(self) -> Iterator["_Command"]:
        for group in self._groups.values():
            places = range(len(group.statements))
            for first in places[::MAX_STATEMENTS]:
                yield _Command(group, places[first : first + MAX_STATEMENTS])

    def _add(self, verb: str, collection: str, statement: Document, *, counted: bool = True) -> None:
        key = (verb, collection, counted)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Statements(verb, collection, counted=counted)
        group.statements.append(statement)
        group.writers.append(self._writer)

    def _stamped(self, fields: Document) -> Document:
        return stamped(fields, schema=self._schema)

    def _send(self, exchange: CommandExchange, commands: Sequence["_Command"]) -> None:
        """Sends commands together; raises as `send`."""
        try:
            answered = exchange.send(commands)
        except PyMongoError as error:
            self.was_sent |= not isinstance(error, (ServerSelectionTimeoutError, DocumentTooLarge))
            raise
        self.was_sent = True
        for command, reply in answered:
            command.check(reply)
