"""Re-queue what lapsed, expire what nobody decided. It runs no turn itself: a claim is the one way in."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from turnkeeper.domain.approval import Approval
from turnkeeper.durations import jittered
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.faults import fault
from turnkeeper.store.contract import Maintenance
from turnkeeper.telemetry.metrics import Metrics

COUNTED = 5
"""One sweep in so many counts for the metrics too: to count walks over all there is."""

logger = logging.getLogger(__name__)


class Sweeper:
    """One on every replica; they do not disturb each other."""

    def __init__(  # noqa: PLR0913 - the parts and times it is made of
        self,
        store: Maintenance,
        *,
        metrics: Metrics,
        expire: Callable[[Approval], Awaitable[object]],
        hint: Callable[[], None],
        interval: float,
        lease: timedelta,
        jitter: Callable[[], float],
    ) -> None:
        """`interval` in seconds. `expire` ends one lapsed approval; `hint` says that something is claimable."""
        self._store = store
        self._metrics = metrics
        self._expire = expire
        self._hint = hint
        self._interval = interval
        self._lease = lease
        self._jitter = jitter

    async def run(self) -> None:
        """Again and again. After a failed call it waits one lease before it judges others' leases again."""
        for number in itertools.count():
            await asyncio.sleep(jittered(self._interval, self._jitter()))
            try:
                await self.sweep()
                if not number % COUNTED:
                    await self.count()
            except ServiceUnavailable:
                logger.warning("the database does not answer; the sweeper waits one lease")
                await asyncio.sleep(self._lease.total_seconds())
            except Exception:
                logger.exception("a sweep failed; the next one tries again")

    async def sweep(self) -> None:
        """Once."""
        fault("sweep.before_requeue")
        if await self._store.requeue_lapsed():
            self._hint()
        for approval in await self._store.lapsed_approvals(limit=100):
            await self._expire_one(approval)

    async def count(self) -> None:
        """What all replicas together have, for the metrics."""
        self._metrics.set_pending_approvals(await self._store.pending_approvals())
        self._metrics.set_active_sessions(await self._store.active_sessions())

    async def _expire_one(self, approval: Approval) -> None:
        try:
            await self._expire(approval)
        except ServiceUnavailable:
            raise
        except Exception:
            logger.exception("an approval cannot be expired", extra={"session": approval.session_id})
