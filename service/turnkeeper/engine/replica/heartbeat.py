"""This replica lives: said again and again, so that what it was writing is ended when it dies."""

import asyncio
import logging
from datetime import timedelta

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import ReplicaRegistry

logger = logging.getLogger(__name__)


class Heartbeat:
    """One on every replica."""

    def __init__(self, store: ReplicaRegistry, *, lease: timedelta) -> None:
        """Four times a lease; who is silent for a whole one counts as dead."""
        self._store = store
        self._lease = lease
        self.alone = False
        """At the last beat no other replica lived."""

    async def run(self) -> None:
        while True:
            try:
                self.alone = not await self._store.write_heartbeat(silent_after=self._lease)
            except ServiceUnavailable:
                logger.warning("the database does not hear that this replica lives")
            except Exception:
                logger.exception("this replica cannot say that it lives")
            await asyncio.sleep(self._lease.total_seconds() / 4)
