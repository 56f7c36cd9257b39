"""Purging: removes deleted sessions and unfinished forks for good, over all tenants.

The head is marked first and removed last. While it exists, no session of the same id can be created; while it is
marked, nothing can be written to the session. Every batch is deleted in a transaction that also writes the marked head.
So a replica that was stopped in the middle of a purge, and continues long after, cannot delete documents of a new
session that has the same id.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import Any, Final

from turnkeeper.faults import fault
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.changesets import REQUESTS_KEPT
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.heads import NEXT_FENCE, NEXT_REVISION, reached
from turnkeeper.store.mongo.shares import NOW_DUE, Shares
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

PAGE: Final = 32
"""Sessions that are looked up together."""
BATCH: Final = 250
"""Documents that one transaction deletes, at most."""
BATCHES: Final = 20
"""Batches of one session that one call deletes, at most; the next call deletes the rest."""
MEMBERS: Final = ("events", "turns", "tool_calls", "approvals", "requests", "partials")
"""The collections with documents of a session, apart from its own document and its head."""


class Purges:
    """Implements `Retention.purge`."""

    _connection: Connection
    _shares: Shares
    _transactions: Transactions

    async def purge(self, *, after: timedelta) -> AsyncIterator[int]:
        dues = (
            (partial(_reached, {}, "deleted_at", after), "deleted_at"),
            (partial(_reached, {"forking": {"$exists": True}}, "update_time", REQUESTS_KEPT), "update_time"),
        )
        with self._connection.call("purge"):  # mostly there is nothing to purge: that is one read
            if await self._connection.heads.find_one({"$or": [due(NOW_DUE) for due, _ in dues]}, {"_id": 1}) is None:
                return
        for due, by in dues:
            pages = self._shares.pages("purge", self._connection.heads, due, by=by, size=PAGE, fields={"_id": 1})
            async with aclosing(pages):
                async for heads, _ in pages:
                    with self._connection.call("purge"):
                        gone = sum([await self._purge(head["_id"], due(NOW_DUE)) for head in heads])
                    yield gone

    async def _purge(self, key: Document, due: Document) -> bool:
        """Returns True if the session is gone, removed by this call or by another."""
        mark = {"purging": True, "fence": NEXT_FENCE, "revision": NEXT_REVISION}
        marked = await self._connection.heads.update_one({**keys.where(key), **due}, [{"$set": mark}])
        if not marked.matched_count:
            return False
        fault("purge.before_delete")
        for _ in range(BATCHES):
            batch = await self._next_batch(key)
            if batch:
                await self._remove(key, batch)
            if sum(map(len, batch.values())) < BATCH:
                fault("purge.before_end")
                return await self._remove(key, {"sessions": [key]}, last=True)
        return False

    async def _next_batch(self, key: Document) -> Mapping[str, Sequence[Any]]:
        """Returns the ids of the session's documents by their collections: BATCH of them, or all that are left."""
        ids: dict[str, Sequence[Any]] = {}
        left = BATCH
        for name in MEMBERS:
            match = {"tenant": key["tenant"], "session_id": key["session_id"]}
            documents = await self._connection.database[name].find(match, {"_id": 1}).limit(left).to_list(left)
            if documents:
                ids[name] = [document["_id"] for document in documents]
                left -= len(documents)
            if not left:
                break
        return ids

    async def _remove(self, key: Document, ids: Mapping[str, Sequence[Any]], *, last: bool = False) -> bool:
        """Deletes documents, and with `last` the head as well. Deletes nothing if the marked head is gone."""
        marked = {**keys.where(key), "purging": True}

        def write(writes: Writes) -> None:
            writes.compute("heads", marked, [{"$set": {"revision": NEXT_REVISION}}])
            for collection, of_collection in ids.items():
                writes.delete(collection, *({"_id": id_, "tenant": key["tenant"]} for id_ in of_collection))
            if last:
                writes.delete("heads", marked)

        async def look(session: ClientSession, _: Obstacle) -> bool | None:
            there = await self._connection.heads.find_one(marked, {"_id": 1}, session=session)
            return last if there is None else None

        return await self._transactions.run(Transaction(write, result=True, look=look))


def _reached(match: Document, name: str, after: timedelta, ago: timedelta) -> Document:
    """Returns the condition that `after` has passed since a time, and that this was `ago`."""
    return {**match, **reached(name, ago=after + ago)}
