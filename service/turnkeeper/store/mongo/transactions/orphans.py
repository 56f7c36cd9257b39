"""Aborts the open transactions of killed replicas, which would keep heads locked until the database's own time limit.

Every replica announces each server session before its first transaction in it, and publishes a heartbeat. A replica
that finds a lapsed lease, or an old heartbeat, kills the server sessions of that owner. An owner that is alive after
all only has to begin its transaction again, and announces its server sessions anew.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

import pymongo
from bson.binary import UUID_SUBTYPE, Binary
from pymongo.errors import DuplicateKeyError, PyMongoError

from turnkeeper.start_errors import NameTaken
from turnkeeper.store.contract import StoredHeartbeat, heartbeat_interval
from turnkeeper.store.mongo.client import ClientSession, Connection
from turnkeeper.store.mongo.documents import SCHEMA

ANNOUNCE_S: Final = 1.0
"""Seconds for an announcement, at most. If it fails, the transaction is sent all the same."""
WATCHED_INTERVALS: Final = 1.25
WATCHED_LONGER: Final = timedelta(seconds=1)
"""A process of the same name that may be alive is watched for so many intervals of its heartbeat, and for longer."""
LOOK_S: Final = 0.1
"""Seconds between two looks at its heartbeat."""
STARTING_MS: Final = 60_000
"""Stands for the `silent_after` of a process that has taken its name and not yet published a heartbeat."""
MOST_SESSIONS: Final = 1024
"""The newest server sessions of a replica that are stored. The driver uses few at a time, again and again."""

logger = logging.getLogger(__name__)


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
        self._has_name = False
        self._beats = 0
        """Heartbeats so far, also those that may not be stored."""
        self._reported = ""
        """The other process of this name that was logged last."""

    async def announce(self, session: ClientSession) -> None:
        """Announces a server session before its first transaction. Failing to do so does not stop the transaction."""
        name = bytes(session.delegate.session_id["id"])
        if not self._replica or name in self._announced:
            return
        with suppress(PyMongoError, TimeoutError), pymongo.timeout(ANNOUNCE_S):
            async with asyncio.timeout(ANNOUNCE_S):  # the driver's limit leaves out the wait for one of its threads
                await self._push(name)

    async def _push(self, name: bytes) -> None:
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

    async def write_heartbeat(self, *, silent_after: timedelta) -> StoredHeartbeat:
        """Publishes this replica's heartbeat, by the database's clock. Writes nothing if the replica has no name.

        If its sessions were killed since the last one, all of them are announced anew. So they are if the last one is
        not there: the database was restored to an older state, which may lack some of them.
        """
        if self._replica:
            await self._write_heartbeat(silent_after)
        reply = await self._connection.client.admin.command("hello")
        return StoredHeartbeat(reply["localTime"], await self.others_alive())

    async def _write_heartbeat(self, silent_after: timedelta) -> None:
        last, self._beats = self._beats, self._beats + 1
        before = await self._connection.replicas.find_one_and_update(
            {"_id": self._replica},
            {
                "$currentDate": {"at": True},
                "$set": {
                    "process": self._process,
                    "silent_after": round(silent_after / timedelta(milliseconds=1)),
                    "beat": self._beats,
                },
                "$unset": {"ended": ""},
                "$setOnInsert": {"tenant": "", "sessions": [], "schema": SCHEMA},
            },
            {"ended": 1, "beat": 1, "process": 1},
            upsert=True,
        )
        if not before or "ended" in before or before.get("beat", 0) != last:
            self._announced.clear()
        self._report_other((before or {}).get("process") or self._process)

    def _report_other(self, process: str) -> None:
        """Logs that another process has this replica's name: one that was frozen while its successor started."""
        if process not in (self._process, self._reported):
            logger.error(
                "another process runs as replica %s: each misses notifications of what the other stores; stop one of "
                "them, or give it another --replica",
                self._replica,
            )
            self._reported = process

    async def others_alive(self) -> bool:
        """Returns True if another replica's heartbeat is still fresh."""
        return bool(await self._others(limit=1))

    async def share(self) -> tuple[int, int]:
        """Returns the number of this replica among the living ones, from 0, and how many there are."""
        names = sorted({self._replica, *await self._others()})
        return names.index(self._replica), len(names)

    async def _others(self, *, limit: int = 0) -> Sequence[str]:
        """Returns the names of other replicas whose heartbeat is still fresh."""
        alive = {
            "_id": {"$ne": self._replica},
            "silent_after": {"$gt": 0},
            "$expr": {"$gte": [{"$add": ["$at", "$silent_after"]}, "$$NOW"]},
        }
        replicas = self._connection.replicas.find(alive, {"_id": 1}).limit(limit)
        return [replica["_id"] async for replica in replicas]

    async def end_silent(self, by: datetime | None = None) -> None:
        """Kills the server sessions of replicas whose heartbeat is too old, once for each.

        With `by`, only of those whose heartbeat was too old at that time of the database.
        """
        now: object = "$$NOW" if by is None else {"$min": ["$$NOW", by]}
        silent = {
            "_id": {"$ne": self._replica},
            "sessions.0": {"$exists": True},
            "silent_after": {"$gt": 0},
            "$expr": {"$lt": [{"$add": ["$at", "$silent_after"]}, now]},
        }
        for replica in await self._connection.replicas.find(silent, {"at": 1}).to_list(None):
            await self._kill({replica["_id"]})
            await self._connection.replicas.update_one(
                {"_id": replica["_id"], "at": replica["at"]}, {"$set": {"sessions": [], "ended": True}}
            )

    async def end(self, owners: Iterable[str]) -> None:
        """Kills the server sessions of these owners, which aborts their open transactions."""
        await self._kill(set(owners) - {"", self._replica})

    async def take_name(self) -> None:
        """Takes this replica's name at the start, and kills the server sessions of an earlier process of that name.

        A process that was alive a moment ago is watched for a little longer than its heartbeats take. Raises NameTaken
        if another one comes; nothing is killed then.
        """
        if not self._replica:
            return
        at = await self._until_silent()
        try:
            taken = await self._connection.replicas.update_one(
                {"_id": self._replica, "at": at},
                {
                    "$currentDate": {"at": True},
                    "$set": {"process": self._process},
                    "$unset": {"silent_after": ""},
                    "$setOnInsert": {"tenant": "", "sessions": [], "schema": SCHEMA},
                },
                upsert=at is None,
            )
        except DuplicateKeyError:
            raise NameTaken(self._replica) from None
        if not taken.matched_count and taken.upserted_id is None:
            raise NameTaken(self._replica)
        self._has_name = True
        await self._kill({self._replica})
        await self._connection.replicas.update_one({"_id": self._replica}, {"$set": {"sessions": []}})

    async def _until_silent(self) -> datetime | None:
        """Returns the last heartbeat under this name, None if there is none. Raises NameTaken if it moves."""
        fresh = {"$gte": [{"$add": ["$at", {"$ifNull": ["$silent_after", STARTING_MS]}]}, "$$NOW"]}
        fields = {"at": 1, "silent_after": 1, "fresh": fresh}
        first = await self._connection.replicas.find_one({"_id": self._replica}, fields)
        if first is None:
            return None
        at: datetime | None = first.get("at")
        if not first["fresh"]:
            return at
        silent_after = timedelta(milliseconds=first.get("silent_after", STARTING_MS))
        patience = (WATCHED_INTERVALS * heartbeat_interval(silent_after) + WATCHED_LONGER).total_seconds()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)
            now = await self._connection.replicas.find_one({"_id": self._replica}, fields)
            if now is None:
                return None
            if now.get("at") != at:
                raise NameTaken(self._replica)
        return at

    async def end_own(self) -> None:
        """Kills this replica's own server sessions at its end, so that no transaction stays open.

        Does nothing if it did not get its name: they are another process's then.
        """
        if self._has_name:
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
