"""What a killed server was writing: its transaction keeps the heads locked until somebody ends it.

So every server says under which server sessions it writes, before it writes under one for the first time; and whoever
meets a lapsed lease kills the sessions of its owner first. An owner that lives only begins its transaction again.
"""

from collections.abc import Iterable
from typing import Final

from bson.binary import UUID_SUBTYPE, Binary

from turnkeeper.store.mongo.client import ClientSession, Connection
from turnkeeper.store.mongo.documents import SCHEMA

MOST_SESSIONS: Final = 1024
"""The newest are kept; the driver uses few at a time, again and again."""


class Orphans:
    """The server sessions of this replica, and the end of others'."""

    def __init__(self, connection: Connection, *, replica: str) -> None:
        """`replica` is the owner that this one's leases name; without a name nothing is announced."""
        self._connection = connection
        self._replica = replica
        self._announced: set[bytes] = set()

    async def announce(self, session: ClientSession) -> None:
        """Before the first transaction of a server session."""
        name = bytes(session.delegate.session_id["id"])
        if not self._replica or name in self._announced:
            return
        await self._connection.replicas.update_one(
            {"_id": self._replica},
            {
                "$push": {"sessions": {"$each": [name], "$slice": -MOST_SESSIONS}},
                "$currentDate": {"at": True},
                "$setOnInsert": {"tenant": "", "schema": SCHEMA},
            },
            upsert=True,
        )
        self._announced.add(name)

    async def end(self, owners: Iterable[str]) -> None:
        """Kill the sessions of these owners, and with them what they were writing."""
        names = sorted(set(owners) - {"", self._replica})
        if not names:
            return
        found = await self._connection.replicas.find({"_id": {"$in": names}}, {"sessions": 1}).to_list(len(names))
        sessions = [{"id": Binary(name, UUID_SUBTYPE)} for each in found for name in each["sessions"]]
        if sessions:
            await self._connection.client.admin.command("killSessions", sessions)

    async def leave(self) -> None:
        """This replica writes nothing more."""
        if self._announced:
            await self._connection.replicas.delete_one({"_id": self._replica})
