"""Purging: removes deleted sessions and unfinished forks for good, over all tenants.

The head is marked first and removed last. While it exists, no session of the same id can be created; while it is
marked, nothing can be written to the session. Every batch is deleted in a transaction that also writes the marked head.
So a replica that was stopped in the middle of a purge, and continues long after, cannot delete documents of a new
session that has the same id.
"""

from datetime import timedelta
from typing import Final

from turnkeeper.faults import fault
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.changesets import REQUESTS_KEPT
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.heads import ANY_TIME, NEXT_FENCE, NEXT_REVISION, NOW
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

BATCH: Final = 250
"""Documents that one transaction deletes, at most."""
BATCHES: Final = 20
"""Batches of one session that one call deletes, at most; the next call deletes the rest."""
MEMBERS: Final = ("events", "turns", "tool_calls", "approvals", "requests", "partials")
"""The collections with documents of a session, apart from its own document and its head."""


class Purges:
    """Implements `Retention.purge`."""

    _connection: Connection
    _transactions: Transactions

    async def purge(self, *, after: timedelta, limit: int) -> int:
        deleted: Document = {"deleted_at": ANY_TIME, "$expr": _longer_ago("deleted_at", after)}
        abandoned: Document = {"forking": {"$exists": True}, "$expr": _longer_ago("update_time", REQUESTS_KEPT)}
        gone = 0
        with self._connection.call("purge"):
            for due, order in ((deleted, "deleted_at"), (abandoned, "update_time")):
                heads = self._connection.heads.find(due, {"_id": 1}).sort(order).limit(max(1, limit))
                gone += sum([await self._purge(head["_id"], due) for head in await heads.to_list(None)])
        return gone

    async def _purge(self, key: Document, due: Document) -> bool:
        """Returns True if the session is gone, removed by this call or by another."""
        mark = {"purging": True, "fence": NEXT_FENCE, "revision": NEXT_REVISION}
        marked = await self._connection.heads.update_one({**keys.where(key), **due}, [{"$set": mark}])
        if not marked.matched_count:
            return False
        fault("purge.before_delete")
        for _ in range(BATCHES):
            if not await self._delete_some(key):
                fault("purge.before_end")
                return await self._remove(key, "sessions", [key], last=True)
        return False

    async def _delete_some(self, key: Document) -> bool:
        """Deletes a batch of the session's documents. Returns False if none is left."""
        for name in MEMBERS:
            match = {"tenant": key["tenant"], "session_id": key["session_id"]}
            documents = await self._connection.database[name].find(match, {"_id": 1}).limit(BATCH).to_list(BATCH)
            if documents:
                return await self._remove(key, name, [document["_id"] for document in documents])
        return False

    async def _remove(self, key: Document, collection: str, ids: list[Document], *, last: bool = False) -> bool:
        """Deletes documents, and with `last` the head as well. Deletes nothing if the marked head is gone."""
        marked = {**keys.where(key), "purging": True}

        def write(writes: Writes) -> None:
            writes.compute("heads", marked, [{"$set": {"revision": NEXT_REVISION}}])
            writes.delete(collection, *({"_id": id_, "tenant": key["tenant"]} for id_ in ids))
            if last:
                writes.delete("heads", marked)

        async def look(session: ClientSession, _: Obstacle) -> bool | None:
            there = await self._connection.heads.find_one(marked, {"_id": 1}, session=session)
            return last if there is None else None

        return await self._transactions.run(Transaction(write, result=True, look=look))


def _longer_ago(name: str, after: timedelta) -> Document:
    """Returns the condition that a time is at least `after` ago by the database's clock.

    The field stands alone on one side, so that an index can bound it.
    """
    return {"$lte": [f"${name}", {"$subtract": [NOW, round(after / timedelta(milliseconds=1))]}]}
