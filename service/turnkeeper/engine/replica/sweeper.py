"""Requeues turns whose lease has lapsed, and expires approvals past their `expire_time`. Only a worker runs a turn."""

import itertools
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from turnkeeper.domain.approval import Approval
from turnkeeper.engine.replica.schedule import JitteredInterval, every
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.faults import fault
from turnkeeper.store.contract import Maintenance
from turnkeeper.telemetry.metrics import Metrics

SWEEPS_A_COUNT = 5
"""One sweep in SWEEPS_A_COUNT also counts for the metrics, because counting reads all sessions and approvals."""
APPROVALS_AT_ONCE = 100
"""Approvals that one sweep expires at most."""

logger = logging.getLogger(__name__)


class Sweeper:
    """Sweeps at intervals. One on every replica; several may sweep at the same time."""

    def __init__(
        self,
        store: Maintenance,
        *,
        metrics: Metrics,
        expire: Callable[[Approval], Awaitable[object]],
        notify_worker: Callable[[], None],
        interval: JitteredInterval,
        lease: timedelta,
    ) -> None:
        """`expire` ends one lapsed approval; `notify_worker` is called if a turn can be claimed."""
        self._store = store
        self._metrics = metrics
        self._expire = expire
        self._notify_worker = notify_worker
        self._interval = interval
        self._lease = lease
        self._sweeps = itertools.count()

    async def run(self) -> None:
        """Sweeps at each interval until it is cancelled.

        After a failed call it waits one lease more: owners renew their leases first once the database is back.
        """
        await every(
            self._interval,
            self._sweep_and_count,
            failure="lapsed leases and approvals not swept",
            pause_when_unavailable=self._lease.total_seconds(),
        )

    async def sweep(self) -> None:
        """Requeues and expires once."""
        fault("sweep.before_requeue")
        if await self._store.requeue_lapsed():
            self._notify_worker()
        for approval in await self._store.lapsed_approvals(limit=APPROVALS_AT_ONCE):
            await self._expire_one(approval)

    async def count(self) -> None:
        """Counts the pending approvals and active sessions of all replicas for the metrics."""
        self._metrics.set_pending_approvals(await self._store.pending_approvals())
        self._metrics.set_active_sessions(await self._store.active_sessions())

    async def _sweep_and_count(self) -> None:
        """Sweeps, and counts at one sweep in SWEEPS_A_COUNT."""
        number = next(self._sweeps)
        await self.sweep()
        if not number % SWEEPS_A_COUNT:
            await self.count()

    async def _expire_one(self, approval: Approval) -> None:
        """Expires one approval. An error of its own keeps no other approval from expiring."""
        try:
            await self._expire(approval)
        except ServiceUnavailable:
            raise
        except Exception:
            logger.exception(
                "approval %s not expired; the next sweep tries again",
                approval.id,
                extra={"session": approval.session_id},
            )
