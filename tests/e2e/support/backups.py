"""Copies of a database, and two ways in which a person restores one under running servers."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Literal

from pymongo import AsyncMongoClient, ReplaceOne
from pymongo.asynchronous.database import AsyncDatabase

Way = Literal["documents", "collections"]
"""Documents are deleted, and those of the copy inserted; or each collection is replaced as a whole."""


class Backup:
    """A copy of every collection, in a database of its own."""

    def __init__(self, live: AsyncDatabase[dict[str, Any]], copy: AsyncDatabase[dict[str, Any]]) -> None:
        self._live = live
        self._copy = copy

    async def take(self) -> None:
        """Copies the database as it is now."""
        for name in await self._live.list_collection_names():
            await (await self._live[name].aggregate([{"$out": {"db": self._copy.name, "coll": name}}])).to_list()

    async def restore(self, way: Way = "documents", *, without: frozenset[str] = frozenset()) -> None:
        """Brings the database back to the copy, without some collections: those stay as they are."""
        for name in set(await self._live.list_collection_names()) - without:
            if way == "collections":
                out = {"db": self._live.name, "coll": name}
                await (await self._copy[name].aggregate([{"$out": out}])).to_list()
                continue
            documents = await self._copy[name].find().to_list()
            await self._live[name].delete_many({})
            if documents:  # a heartbeat may store its replica's document in the meantime
                replaced = [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in documents]
                await self._live[name].bulk_write(replaced)


@contextlib.asynccontextmanager
async def backup_of(mongo_uri: str, database: str) -> AsyncIterator[Backup]:
    """Takes a copy, and drops it after the block."""
    async with AsyncMongoClient[dict[str, Any]](mongo_uri) as client:
        copy = client[f"{database}_copy"]
        backup = Backup(client[database], copy)
        await backup.take()
        try:
            yield backup
        finally:
            await client.drop_database(copy.name)
