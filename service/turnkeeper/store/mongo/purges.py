"""Purging: deleted sessions are removed for good, and forks that nobody finished. Over all tenants.

The head is marked first and goes last: while it is there, no session of the same id can be made; while it is marked,
nothing can be written under it. Every batch is deleted in a transaction that also writes the marked head, so that a
purger that was stopped in the middle, and woken long after, cannot touch a new session of the same id.
"""

from datetime import timedelta
from typing import Final

from turnkeeper.faults import fault
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.changesets import KEPT
from turnkeeper.store.mongo.client import ClientSession, Connection, Document, database_errors
from turnkeeper.store.mongo.heads import ANY_TIME, NEXT_FENCE, NEXT_REVISION, NOW
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

BATCH: Final = 250
"""Documents that one transaction deletes."""
BATCHES: Final = 20
"""Of one session in one call; what is left over comes with the next."""
MEMBERS: Final = ("events", "turns", "tool_calls", "approvals", "requests", "partials")
"""The collections whose documents name their session, beside its own document and its head."""


class Purges:
    """Half of `Retention`."""

    _connection: Connection
    _transactions: Transactions

    async def purge(self, *, after: timedelta, limit: int) -> int:
        deleted: Document = {"deleted_at": ANY_TIME, "$expr": _over("deleted_at", after)}
        abandoned: Document = {"forking": {"$exists": True}, "$expr": _over("update_time", KEPT)}
        gone = 0
        with database_errors():
            for due, order in ((deleted, "deleted_at"), (abandoned, "update_time")):
                found = self._connection.heads.find(due, {"_id": 1}).sort(order).limit(max(1, limit))
                gone += sum([await self._purge(head["_id"], due) for head in await found.to_list(None)])
        return gone

    async def _purge(self, key: Document, due: Document) -> bool:
        """True when it is gone, by this call or by another."""
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
        """A batch of what is left of it. False: there is nothing."""
        for name in MEMBERS:
            match = {"tenant": key["tenant"], "session_id": key["session_id"]}
            found = await self._connection.database[name].find(match, {"_id": 1}).limit(BATCH).to_list(BATCH)
            if found:
                return await self._remove(key, name, [each["_id"] for each in found])
        return False

    async def _remove(self, key: Document, collection: str, ids: list[Document], *, last: bool = False) -> bool:
        """Unless the marked head is gone: then nothing is deleted. `last`: and the head with it."""
        marked = {**keys.where(key), "purging": True}

        def write(writes: Writes) -> None:
            writes.compute("heads", marked, [{"$set": {"revision": NEXT_REVISION}}])
            writes.delete(collection, *({"_id": each, "tenant": key["tenant"]} for each in ids))
            if last:
                writes.delete("heads", marked)

        async def look(session: ClientSession, _: Obstacle) -> bool | None:
            there = await self._connection.heads.find_one(marked, {"_id": 1}, session=session)
            return last if there is None else None

        return await self._transactions.run(Transaction(write, result=True, look=look))


def _over(name: str, after: timedelta) -> Document:
    """That long ago, by the database's clock; this way round an index bounds it."""
    return {"$lte": [f"${name}", {"$subtract": [NOW, round(after / timedelta(milliseconds=1))]}]}
