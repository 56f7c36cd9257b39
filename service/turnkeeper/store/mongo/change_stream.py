"""Reads change notifications from one change stream over the database, with read concern majority.

The database sends the changed fields of a head, without reading the document: they are enough for a notification. Every
write but a renewal increments the head's `revision`, so the database itself filters renewals out. It also filters out
what this replica's own worker wrote, which the replica knows already. Approvals are named, each time they change.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeAlias

import pymongo
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import OperationFailure

from turnkeeper.store.mongo.client import DISCONNECT_S, ClientSession, DatabaseCall, Document
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.signatures import signatures
from turnkeeper.store.mongo.unreadable import Unreadable
from turnkeeper.store.notifications import ApprovalNotification, ChangeNotification, Notification, PreviewChunk

APP_NAME: Final = "turnkeeper-hints"
AWAIT_MS: Final = 500
"""The database answers after this long even without a change."""
SILENCE_MS: Final = 5_000
"""A database that does not answer within this time counts as unavailable."""

PACE_S: Final = 0.01
"""Pause after an answer with changes, so that the next answer holds several: fewer answers cost less."""

_CHANGED: Final = "updateDescription.updatedFields"
_FIELDS: Final = ("last_seq", "wake_at", "lease_until", "owner")
_APPROVALS: Final = "approvals"
_SENT: Final[Document] = {
    **dict.fromkeys(("operationType", "documentKey", "ns.coll"), 1),
    **dict.fromkeys((f"{_CHANGED}.{name}" for name in _FIELDS), 1),
    "fullDocument": {"$cond": [{"$eq": ["$ns.coll", _APPROVALS]}, "$$REMOVE", "$fullDocument"]},
}
"""Of an approval its id alone: it is read only if it is watched, and once for all watchers."""
_Cursor: TypeAlias = dict[str, Any]


class ChangeStream:
    """The change stream of one store, on a client of its own: its long waits are not slow operations."""

    def __init__(self, uri: str, *, database: str, replica: str, unreadable: Unreadable) -> None:
        """`replica`: its previews, and the changesets and claims of its worker, are filtered out.

        `unreadable` records what only a newer version can read; it is passed over.
        """
        self._replica = replica
        self._unreadable = unreadable
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
    async def open(self) -> AsyncIterator[AsyncIterator[Notification]]:
        """Opens the stream as `EventLog.notifications` specifies."""
        session = ClientSession(self._client.delegate.start_session(causal_consistency=False), self._client)
        try:
            with DatabaseCall():
                cursor = await self._aggregate(session)
            async with aclosing(self._read(cursor, session)) as notifications:
                yield notifications
        finally:
            session.delegate.end_session()

    async def close(self) -> None:
        """Disconnects, in a thread: the driver ends its server sessions first."""
        with pymongo.timeout(DISCONNECT_S):
            await asyncio.to_thread(self._client.close)

    async def _aggregate(self, session: ClientSession) -> _Cursor:
        """Opens the cursor where the last one ended.

        Raises OperationFailure if the database no longer has that position. The next call then begins with the present;
        the missed changes are found by polling.
        """
        stage: Document = {"resumeAfter": self._token} if self._token else {}
        try:
            return await self._command(
                {"aggregate": 1, "pipeline": _pipeline(stage, replica=self._replica), "cursor": {}}, session
            )
        except OperationFailure:
            self._token = None
            raise

    async def _read(self, cursor: _Cursor, session: ClientSession) -> AsyncGenerator[Notification]:
        batch = cursor["firstBatch"]
        with DatabaseCall():
            while True:
                for change in batch:
                    self._token = change["_id"]
                    for notification in self._unreadable.passed_over([change], _notification_of):
                        yield notification
                if batch:
                    await asyncio.sleep(PACE_S)
                self._token = cursor["postBatchResumeToken"]
                more = {"getMore": cursor["id"], "collection": "$cmd.aggregate", "maxTimeMS": AWAIT_MS}
                cursor = await self._command(more, session)
                batch = cursor["nextBatch"]

    async def _command(self, command: Document, session: ClientSession) -> _Cursor:
        reply: Document = await self._database.command(command, session=session)
        cursor: _Cursor = reply["cursor"]
        return cursor


def _pipeline(stage: Document, *, replica: str) -> list[Document]:
    changed = {f"{_CHANGED}.revision": {"$exists": True}, f"{_CHANGED}.by": {"$nin": signatures(replica)}}
    moved = {"ns.coll": "heads", "$or": [changed, {"operationType": "replace"}]}
    others = {"ns.coll": "partials", "operationType": "insert", "fullDocument.replica": {"$ne": replica}}
    approvals = {"ns.coll": _APPROVALS, "operationType": {"$in": ["insert", "update", "replace"]}}
    return [{"$changeStream": stage}, {"$match": {"$or": [moved, others, approvals]}}, {"$project": _SENT}]


def _notification_of(change: Document) -> Notification:
    key = change["documentKey"]["_id"]
    if change["ns"]["coll"] == _APPROVALS:
        return ApprovalNotification(key["tenant"], key["id"])
    if change["operationType"] == "insert":
        return decode(PreviewChunk, change["fullDocument"])
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
