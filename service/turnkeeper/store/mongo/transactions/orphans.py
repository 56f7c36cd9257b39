"""Aborts the open transactions of killed replicas, which would keep heads locked until the database's own time limit.

Every replica announces each server session before its first transaction in it, and publishes a heartbeat. A replica
that finds a lapsed lease, or an old heartbeat, kills the server sessions of that owner. An owner that is alive after
all only has to begin its transaction again, and announces its server sessions anew.
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
"""Seconds for an announcement, at most. If it fails, the transaction is sent all the same."""
MOST_SESSIONS: Final = 1024
"""The newest server sessions of a replica that are stored. The driver uses few at a time, again and again."""


class Orphans:
    """Announces the server sessions of this replica, and kills those of others."""

    def __init__(
        self, connection: Connection, *, replica: str, process: str = "", most_sessions: int = MOST_SESSIONS
    ) -> None:
        """`replica` is the owner that this replica's leases name. Without a name nothing is announced.

        `process` tells this process from an earlier one of the same name.
        """
        self._connection = connection
        self._replica = replica
        self._process = process
        self._most_sessions = most_sessions
        self._announced: dict[bytes, None] = {}
        """The newest server sessions, in the order of their announcement."""

    async def announce(self, session: ClientSession) -> None:
        """Announces a server session before its first transaction. Failing to do so does not stop the transaction."""
        name = bytes(session.delegate.session_id["id"])
        if not self._replica or name in self._announced:
            return
        with suppress(PyMongoError), pymongo.timeout(ANNOUNCE_S):
            await self._connection.replicas.update_one(
                {"_id": self._replica},
                {
                    "$push": {"sessions": {"$each": [name], "$slice": -self._most_sessions}},
                    "$currentDate": {"at": True},
                    "$set": {"process": self._process},
                    "$setOnInsert": {"tenant": "", "schema": SCHEMA},
                },
                upsert=True,
            )
            self._remember(name)

    def _remember(self, name: bytes) -> None:
        """Remembers half as many as the database keeps, so that a forgotten one is announced again in time.

        (The database may have some twice, or in another order: an answer was lost, or two were announced at once.)
        """
        self._announced[name] = None
        if len(self._announced) > self._most_sessions // 2:
            del self._announced[next(iter(self._announced))]

    async def write_heartbeat(self, *, silent_after: timedelta) -> None:
        """Publishes this replica's heartbeat, by the database's clock.

        If its sessions were killed since the last one, all of them are announced anew.
        """
        if not self._replica:
            return
        before = await self._connection.replicas.find_one_and_update(
            {"_id": self._replica},
            {
                "$currentDate": {"at": True},
                "$set": {
                    "process": self._process,
                    "silent_after": round(silent_after / timedelta(milliseconds=1)),
                },
                "$unset": {"ended": ""},
                "$setOnInsert": {"tenant": "", "sessions": [], "schema": SCHEMA},
            },
            {"ended": 1},
            upsert=True,
        )
        if not before or "ended" in before:
            self._announced.clear()

    async def others_alive(self) -> bool:
        """Returns True if another replica's heartbeat is still fresh."""
        alive = {
            "_id": {"$ne": self._replica},
            "silent_after": {"$gt": 0},
            "$expr": {"$gte": [{"$add": ["$at", "$silent_after"]}, "$$NOW"]},
        }
        return await self._connection.replicas.find_one(alive, {"_id": 1}) is not None

    async def end_silent(self) -> None:
        """Kills the server sessions of replicas whose heartbeat is too old, once for each."""
        silent = {
            "_id": {"$ne": self._replica},
            "sessions.0": {"$exists": True},
            "silent_after": {"$gt": 0},
            "$expr": {"$lt": [{"$add": ["$at", "$silent_after"]}, "$$NOW"]},
        }
        for replica in await self._connection.replicas.find(silent, {"at": 1}).to_list(None):
            await self._kill({replica["_id"]})
            await self._connection.replicas.update_one(
                {"_id": replica["_id"], "at": replica["at"]}, {"$set": {"sessions": [], "ended": True}}
            )

    async def end(self, owners: Iterable[str]) -> None:
        """Kills the server sessions of these owners, which aborts their open transactions."""
        await self._kill(set(owners) - {"", self._replica})

    async def end_own(self) -> None:
        """Kills all server sessions under this replica's name: at the start those of an earlier process, at the end
        its own, so that no transaction stays open."""
        if self._replica:
            await self._kill({self._replica})
            await self._connection.replicas.delete_one({"_id": self._replica})

    async def _kill(self, names: set[str]) -> None:
        """Kills the server sessions that these replicas announced."""
        if not names:
            return
        replicas = self._connection.replicas.find({"_id": {"$in": sorted(names)}}, {"sessions": 1})
        sessions = [{"id": Binary(id_, UUID_SUBTYPE)} async for replica in replicas for id_ in replica["sessions"]]
        if sessions:
            await self._connection.client.admin.command("killSessions", sessions)
