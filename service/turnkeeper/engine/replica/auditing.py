"""What a replica adds to the audit trail by itself: seals, the agents that it loaded, and samples of refused calls."""

import asyncio
import hashlib
from collections.abc import Callable, Iterable

from turnkeeper.audit.refusals import SAMPLE_S, RefusalSamples
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.audit import AuditRecord, Seal
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.replica.schedule import every
from turnkeeper.engine.replica.sealer import Sealer
from turnkeeper.store.audit import AuditStore


class Auditing:
    """The replica's part of the audit trail."""

    def __init__(
        self, store: AuditStore, *, sign: Callable[[Seal], Seal] | None, replica: str, sources: Sources
    ) -> None:
        """`sign` as of Sealer."""
        self.refusals = RefusalSamples(store, now=sources.now, new_id=sources.new_id)
        self._store = store
        self._replica = replica
        self._sources = sources
        self._sealer = Sealer(store, sign=sign, now=sources.now, jitter=sources.jitter)

    async def run(self) -> None:
        """Seals records and stores samples until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sealer.run())
            group.create_task(
                every(lambda: SAMPLE_S, self.refusals.store, failure="samples of refused calls not stored")
            )

    async def record_agents(self, agents: Iterable[Agent]) -> None:
        """Records the agents that this replica has loaded, with their versions. Raises ServiceUnavailable."""
        versions = sorted(f"{agent.name}@{agent.version}" for agent in agents)
        record = AuditRecord(
            tenant="",
            id=self._sources.new_id(),
            at=self._sources.now(),
            action="load_agents",
            target=hashlib.sha256("\n".join(versions).encode()).hexdigest(),
            outcome="OK",
            details={"replica": self._replica, "agents": " ".join(versions)},
        )
        await self._store.record(record)
