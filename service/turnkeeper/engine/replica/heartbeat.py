"""Publishes this replica's heartbeat. Other replicas abort its open transactions once it is older than one lease."""

from datetime import timedelta

from turnkeeper import lease_clock
from turnkeeper.engine.replica.lapse_judge import LapseJudge
from turnkeeper.engine.replica.schedule import every
from turnkeeper.store.contract import ReplicaRegistry, heartbeat_interval


class Heartbeat:
    """Writes the heartbeat four times a lease, and every 2 s at least."""

    def __init__(self, store: ReplicaRegistry, *, lease: timedelta) -> None:
        """`lease`: a replica whose heartbeat is older counts as dead."""
        self._store = store
        self._lease = lease
        self.alone = False
        """At the last heartbeat no other replica had a fresh one."""
        self.judge = LapseJudge(lease=lease)
        """Learns of each heartbeat that was stored."""

    async def run(self) -> None:
        """Writes heartbeats until it is cancelled."""
        interval = heartbeat_interval(self._lease).total_seconds()
        await every(lambda: interval, self._write, failure="heartbeat not written", at_once=True)

    async def _write(self) -> None:
        """Writes one heartbeat."""
        sent_at = lease_clock.now()
        stored = await self._store.write_heartbeat(silent_after=self._lease)
        self.judge.record(stored.at, sent_at=sent_at)
        self.alone = not stored.others_alive
