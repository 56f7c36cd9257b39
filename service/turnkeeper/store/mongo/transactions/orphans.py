"""What a killed server was writing: its transaction keeps the heads locked until somebody ends it.

So every server says under which server sessions it writes, before it writes under one for the first time, and says
again and again that it lives. Whoever meets a lapsed lease, or a replica that has been silent for too long, kills its
sessions. One that lives after all only begins its transaction again, and announces its sessions anew.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Final

import pymongo
from bson.binary import UUID_SUBTYPE, Binary
from pymongo.errors import PyMongoError

from turnkeeper.store.mongo.client import ClientSession, Connection
from turnkeeper.store.mongo.documents import SCHEMA

ANNOUNCE_S: Final = 1.0
MOST_SESSIONS: Final = 1024
"""The newest are kept; the driver uses few at a time, again and again."""


class Orphans:
    """The server sessions of this replica, and the end of others'."""

    def __init__(self, connection: Connection, *, replica: str, most_sessions: int = MOST_SESSIONS) -> None:
        """`replica` is the owner that this one's leases name; without a name nothing is announced."""
        self._connection = connection
        self._replica = replica
        self._most_sessions = most_sessions
        self._announced: dict[bytes, None] = {}
        """The newest, in the order of their announcement."""

    async def announce(self, session: ClientSession) -> None:
        """Before the first transaction of a server session. Not being heard is no reason not to write."""
        name = bytes(session.delegate.session_id["id"])
        if not self._replica or name in self._announced:
            return
        with suppress(PyMongoError), pymongo.timeout(ANNOUNCE_S):
            await self._connection.replicas.update_one(
                {"_id": self._replica},
                {
                    "$push": {"sessions": {"$each": [name], "$slice": -self._most_sessions}},
                    "$currentDate": {"at": True},
                    "$setOnInsert": {"tenant": "", "schema": SCHEMA},
                },
                upsert=True,
            )
            self._remember(name)

    def _remember(self, name: bytes) -> None:
        """What is forgotten here is announced again: in time, as the database keeps twice as many.

        (It may have some of them twice, or in another order, when an answer got lost or two were announced at once.)
        """
        self._announced[name] = None
        if len(self._announced) > self._most_sessions // 2:
            del self._announced[next(iter(self._announced))]

    async def beat(self, *, silent_after: timedelta) -> None:
        """This replica lives, by the database's clock."""
        if not self._replica:
            return
        before = await self._connection.replicas.find_one_and_update(
            {"_id": self._replica},
            {
                "$currentDate": {"at": True},
                "$set": {"silent_after": round(silent_after / timedelta(milliseconds=1))},
                "$unset": {"ended": ""},
                "$setOnInsert": {"tenant": "", "sessions": [], "schema": SCHEMA},
            },
            {"ended": 1},
            upsert=True,
        )
        if not before or "ended" in before:
            self._announced.clear()

    async def others_live(self) -> bool:
        """There is another replica that was heard of no longer ago than it said."""
        living = {
            "_id": {"$ne": self._replica},
            "silent_after": {"$gt": 0},
            "$expr": {"$gte": [{"$add": ["$at", "$silent_after"]}, "$$NOW"]},
        }
        return await self._connection.replicas.find_one(living, {"_id": 1}) is not None

    async def end_silent(self) -> None:
        """Kill the sessions of the replicas that were silent for longer than they said; each once."""
        silent = {
            "_id": {"$ne": self._replica},
            "sessions.0": {"$exists": True},
            "silent_after": {"$gt": 0},
            "$expr": {"$lt": [{"$add": ["$at", "$silent_after"]}, "$$NOW"]},
        }
        for each in await self._connection.replicas.find(silent, {"at": 1}).to_list(None):
            await self._kill({each["_id"]})
            await self._connection.replicas.update_one(
                {"_id": each["_id"], "at": each["at"]}, {"$set": {"sessions": [], "ended": True}}
            )

    async def end(self, owners: Iterable[str]) -> None:
        """Kill the sessions of these owners, and with them what they were writing."""
        await self._kill(set(owners) - {"", self._replica})

    async def enter(self) -> None:
        """Whoever had this replica's name before is gone."""
        await self._forget_own()

    async def leave(self) -> None:
        """This replica writes nothing more: whatever it could not end does not stay open."""
        await self._forget_own()

    async def _forget_own(self) -> None:
        if self._replica:
            await self._kill({self._replica})
            await self._connection.replicas.delete_one({"_id": self._replica})

    async def _kill(self, names: set[str]) -> None:
        if not names:
            return
        found = self._connection.replicas.find({"_id": {"$in": sorted(names)}}, {"sessions": 1})
        sessions = [{"id": Binary(name, UUID_SUBTYPE)} async for each in found for name in each["sessions"]]
        if sessions:
            await self._connection.client.admin.command("killSessions", sessions)
