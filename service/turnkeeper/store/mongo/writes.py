"""The writes inside a transaction: each changes all that it names, or stops it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pymongo.errors import PyMongoError, ServerSelectionTimeoutError, WriteError

from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.next_version import stamped

DUPLICATE_KEY: Final = 11000


class Obstacle(Enum):
    """Why a transaction was not simply committed."""

    MISS = "miss"
    """A filter matched less than it should, or an insert met its like. Nothing was stored."""
    CONFLICT = "conflict"
    """Another transaction was in the way, or the connection broke before the commit. Nothing was stored."""
    UNKNOWN = "unknown"
    """The commit was sent; nobody said what became of it."""


class Stopped(Exception):
    """The transaction cannot go on as it is."""

    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__(obstacle)
        self.obstacle = obstacle


@dataclass(slots=True)
class Writes:
    """The writes of one transaction. Each raises what makes `run` abort when it does not change all it names.

    `arrived`: the database may know of the transaction.
    """

    connection: Connection
    session: ClientSession
    arrived: bool = False

    async def find_and_update(
        self, collection: str, match: Document, pipeline: Sequence[Document], *, fields: Sequence[str]
    ) -> Document:
        """Change exactly one document; these fields of it, after the change."""
        reply = await self._send(
            {
                "findAndModify": collection,
                "query": match,
                "update": [*pipeline, {"$set": self._stamped({})}] if self._stamped({}) else pipeline,
                "new": True,
                "fields": dict.fromkeys(fields, 1),
            }
        )
        if reply["value"] is None:
            raise Stopped(Obstacle.MISS)
        value: Document = reply["value"]
        return value

    async def insert(self, collection: str, documents: Sequence[Document]) -> None:
        """New documents, none of which may exist."""
        if documents:
            written = [self._stamped(document) for document in documents]
            self._all(await self._send({"insert": collection, "documents": written}), len(documents))

    async def update(self, collection: str, updates: Sequence[tuple[Document, Document]]) -> None:
        """(filter, `$set`) pairs; each must find its document."""
        if updates:
            statements = [{"q": match, "u": {"$set": self._stamped(fields)}} for match, fields in updates]
            self._all(await self._send({"update": collection, "updates": statements}), len(updates))

    async def update_where(self, collection: str, match: Document, fields: Document) -> None:
        """`$set` on all that match, none included."""
        changed = {"$set": self._stamped(fields)}
        reply = await self._send({"update": collection, "updates": [{"q": match, "u": changed, "multi": True}]})
        self._all(reply, reply["n"])

    async def delete(self, collection: str, keys: Sequence[Document]) -> None:
        """These filters; what another transaction removed already is no miss."""
        if keys:
            statements = [{"q": match, "limit": 1} for match in keys]
            await self._send({"delete": collection, "deletes": statements})

    def _stamped(self, fields: Document) -> Document:
        return stamped(fields, schema=self.connection.schema)

    async def _send(self, command: Document) -> Document:
        try:
            reply: Document = await self.connection.database.command(command, session=self.session)
        except PyMongoError as error:
            self.arrived |= not isinstance(error, ServerSelectionTimeoutError)
            raise
        self.arrived = True
        return reply

    def _all(self, reply: Document, expected: int) -> None:
        if errors := reply.get("writeErrors"):
            if errors[0]["code"] == DUPLICATE_KEY:
                raise Stopped(Obstacle.MISS)
            raise WriteError("", errors[0]["code"])
        if reply["n"] != expected:
            raise Stopped(Obstacle.MISS)
