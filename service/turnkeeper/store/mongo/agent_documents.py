"""Stores the versions of agents that sessions pin."""

import time
from contextlib import suppress
from typing import Final

from pymongo.errors import DuplicateKeyError

from turnkeeper.domain.agent import Agent
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import Connection
from turnkeeper.store.mongo.documents import SCHEMA, encode
from turnkeeper.store.mongo.next_schema import stamped

KNOWN_S: Final = 60.0
"""Seconds for which a stored version is not looked for again. A database that was restored meanwhile may lack it."""
MAX_KNOWN: Final = 4096
"""Versions that are known to be stored, at most. Beyond it all are looked for again."""


class AgentDocuments:
    """Stores each version once, and remembers for KNOWN_S that it is stored."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[tuple[str, str, str], float] = {}
        """When each version was found or stored (monotonic seconds)."""

    async def store(self, agent: Agent, *, tenant: str) -> None:
        """Stores the agent's version, before the session that pins it. Equal versions have equal content, so nothing is
        overwritten."""
        version = (tenant, agent.name, agent.version)
        now = time.monotonic()
        if now - self._known.get(version, -KNOWN_S) < KNOWN_S:
            return
        key = keys.of_agent(*version)
        with self._connection.in_time():
            if await self._connection.agents.find_one(keys.where(key), {"_id": 1}) is None:
                document = {"_id": key, **encode(agent), "tenant": tenant, "version": agent.version, "schema": SCHEMA}
                with suppress(DuplicateKeyError):
                    await self._connection.agents.insert_one(stamped(document, schema=self._connection.schema))
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[version] = now
