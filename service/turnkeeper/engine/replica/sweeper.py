"""Requeues turns whose lease has lapsed. Only a worker runs a turn."""

import itertools
from collections.abc import Callable
from datetime import datetime

from turnkeeper.engine.replica.schedule import JitteredInterval, every
from turnkeeper.faults import fault
from turnkeeper.store.maintenance import Maintenance
from turnkeeper.telemetry.metrics import Metrics

SWEEPS_A_RESCUE = 5
"""One sweep in SWEEPS_A_RESCUE also looks for turns that nothing else would start, and counts for the metrics.

No changeset leaves such turns behind, and counting reads all sessions and approvals.
"""


class Sweeper:
    """Sweeps at intervals. One on every replica; several may sweep at the same time."""

    def __init__(
        self,
        store: Maintenance,
        *,
        metrics: Metrics,
        notify_worker: Callable[[], None],
        interval: JitteredInterval,
        lapsed_by: Callable[[], datetime],
    ) -> None:
        """`notify_worker` is called if a turn can be claimed, `lapsed_by` before each sweep: see `LapseJudge`."""
        self._store = store
        self._metrics = metrics
        self._notify_worker = notify_worker
        self._interval = interval
        self._lapsed_by = lapsed_by
        self._sweeps = itertools.count()

    async def run(self) -> None:
        """Sweeps at each interval until it is cancelled."""
        await every(self._interval, self._sweep_and_count, failure="lapsed leases not swept")

    async def sweep(self, *, rescues: bool = True) -> None:
        """Requeues once; see `Maintenance.requeue_lapsed`."""
        fault("sweep.before_requeue")
        if await self._store.requeue_lapsed(lapsed_by=self._lapsed_by(), rescues=rescues):
            self._notify_worker()

    async def count(self) -> None:
        """Counts what waits and what is active in the whole database, for the metrics."""
        waiting = await self._store.waiting_turns()
        self._metrics.set_waiting_turns(waiting.turns, seconds=waiting.longest.total_seconds())
        self._metrics.set_pending_approvals(await self._store.pending_approvals())
        self._metrics.set_active_sessions(await self._store.active_sessions())

    async def _sweep_and_count(self) -> None:
        """Sweeps; rescues and counts at one sweep in SWEEPS_A_RESCUE, the first one among them."""
        is_rescue = not next(self._sweeps) % SWEEPS_A_RESCUE
        await self.sweep(rescues=is_rescue)
        if is_rescue:
            await self.count()
