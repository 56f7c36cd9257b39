"""Hints: one change stream over the database, read with a majority.

The database sends what was written, without a look at the document: a head's changed fields say enough. Every write but
a renewal counts the head's `revision` up, so that renewals are left out where they are, in the database; so is what
this replica's own worker wrote, which it knows already.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeAlias

import pymongo
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import OperationFailure

from turnkeeper.store.mongo.client import GOODBYE_S, ClientSession, Document, database_errors
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.heads import signatures
from turnkeeper.store.notifications import ChangeNotification, PreviewChunk

APP_NAME: Final = "turnkeeper-hints"
AWAIT_MS: Final = 500
"""The database answers after this long, though it has nothing to say."""
SILENCE_MS: Final = 5_000
"""A database that does not answer within this is gone."""

PACE_S: Final = 0.01
"""After some news the next is gathered for so long: an answer for each one would cost more than all in one."""

_CHANGED: Final = "updateDescription.updatedFields"
_TOLD: Final = ("last_seq", "wake_at", "lease_until", "owner")
_SENT: Final = ("operationType", "documentKey", "fullDocument", *(f"{_CHANGED}.{name}" for name in _TOLD))
_Cursor: TypeAlias = dict[str, Any]


class ChangeStream:
    """The change stream of one store. It has a client of its own: a long wait for news is no slow operation."""

    def __init__(self, uri: str, *, database: str, replica: str) -> None:
        """`replica`: whose previews, and whose worker's steps and claims, are left out."""
        self._replica = replica
        self._client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
            uri,
            readPreference="primary",
            retryReads=False,
            heartbeatFrequencyMS=1_000,
            connectTimeoutMS=2_000,
            serverSelectionTimeoutMS=5_000,
            socketTimeoutMS=SILENCE_MS,
            timeoutMS=None,
            maxPoolSize=2,
            appname=APP_NAME,
        )
        self._database = self._client[database]
        self._token: Document | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[ChangeNotification | PreviewChunk]]:
        """See the store's `hints`."""
        session = ClientSession(self._client.delegate.start_session(causal_consistency=False), self._client)
        try:
            with database_errors():
                cursor = await self._aggregate(session)
            async with aclosing(self._read(cursor, session)) as notifications:
                yield notifications
        finally:
            session.delegate.end_session()

    async def close(self) -> None:
        """Disconnect, in a thread: the driver says goodbye first."""
        with pymongo.timeout(GOODBYE_S):
            await asyncio.to_thread(self._client.close)

    async def _aggregate(self, session: ClientSession) -> _Cursor:
        """A token that the database does not know any more is given up: what was missed is polled for."""
        stage: Document = {"resumeAfter": self._token} if self._token else {}
        try:
            return await self._command(
                {"aggregate": 1, "pipeline": _pipeline(stage, replica=self._replica), "cursor": {}}, session
            )
        except OperationFailure:
            self._token = None
            raise

    async def _read(self, cursor: _Cursor, session: ClientSession) -> AsyncGenerator[ChangeNotification | PreviewChunk]:
        batch = cursor["firstBatch"]
        with database_errors():
            while True:
                for each in batch:
                    self._token = each["_id"]
                    yield _notification_of(each)
                if batch:
                    await asyncio.sleep(PACE_S)
                self._token = cursor["postBatchResumeToken"]
                more = {"getMore": cursor["id"], "collection": "$cmd.aggregate", "maxTimeMS": AWAIT_MS}
                cursor = await self._command(more, session)
                batch = cursor["nextBatch"]

    async def _command(self, command: Document, session: ClientSession) -> _Cursor:
        reply: Document = await self._database.command(command, session=session)
        found: _Cursor = reply["cursor"]
        return found


def _pipeline(stage: Document, *, replica: str) -> list[Document]:
    stepped = {f"{_CHANGED}.revision": {"$exists": True}, f"{_CHANGED}.by": {"$nin": signatures(replica)}}
    moved = {"ns.coll": "heads", "$or": [stepped, {"operationType": "replace"}]}
    others = {"ns.coll": "partials", "operationType": "insert", "fullDocument.replica": {"$ne": replica}}
    return [{"$changeStream": stage}, {"$match": {"$or": [moved, others]}}, {"$project": dict.fromkeys(_SENT, 1)}]


def _notification_of(change: Document) -> ChangeNotification | PreviewChunk:
    if change["operationType"] == "insert":
        return decode(PreviewChunk, change["fullDocument"])
    key = change["documentKey"]["_id"]
    if change["operationType"] == "replace":
        fields: Document = change["fullDocument"]
    else:
        fields = change["updateDescription"]["updatedFields"]
    return ChangeNotification(
        tenant=key["tenant"],
        session_id=key["session_id"],
        last_seq=fields.get("last_seq", 0),
        claimable=fields.get("wake_at") is not None,
        by_owner=fields.get("lease_until") is not None,
        owner=fields.get("owner"),
    )
