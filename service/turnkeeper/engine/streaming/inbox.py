"""The inbox of this replica: the approvals that change, for all their watchers.

The change stream only names what has changed. It is read and encoded once, however many watchers there are, and each
watcher compares it with its filter in memory.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from turnkeeper.admission.memory import MemoryBudget
from turnkeeper.domain.approval import Approval
from turnkeeper.engine.streaming.approval_watcher import ApprovalWatcher, Change, ResetReason
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.wakeups import DeadlineTimers
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import ApprovalStore
from turnkeeper.store.filters import ApprovalFilter
from turnkeeper.telemetry.metrics import Metrics

READ_AT_ONCE: Final = 100
"""Changed approvals that one query reads."""
PAGES_AT_ONCE: Final = 8
"""Pages of snapshots that are read at the same time: all watchers begin anew after a lost change stream."""

Encode = Callable[[Approval], Awaitable[bytes]]
"""Returns the bytes of an approval."""

logger = logging.getLogger(__name__)


class Inbox:
    """The watchers of approvals on this replica, by tenant, and what they share."""

    def __init__(
        self,
        store: ApprovalStore,
        encode: Encode,
        *,
        metrics: Metrics,
        times: StreamTimes,
        rng: random.Random,
        memory: MemoryBudget | None = None,
    ) -> None:
        """`rng` spreads the ends of streams."""
        self.store = store
        self.encode = encode
        self.metrics = metrics
        self.keep_alive = times.keep_alive
        self.timers = DeadlineTimers()
        self.pages = asyncio.Semaphore(PAGES_AT_ONCE)
        self.memory = (memory or MemoryBudget()).part("inbox")
        self.is_open = False
        """Snapshots may be read: the change stream is open, or cannot be opened for long."""
        self.draining = False
        self._times = times
        self._rng = rng
        self._watchers: dict[str, set[ApprovalWatcher]] = {}
        self._changed: dict[str, dict[str, None]] = {}
        """The ids of the approvals to read, by tenant, each once, oldest change first."""
        self._has_changed = asyncio.Event()

    def watch(self, tenant: str, where: ApprovalFilter) -> ApprovalWatcher:
        """Returns a watcher of the tenant's approvals. The caller closes it by a `with` block."""
        ends_at = self._times.planned_end(asyncio.get_running_loop().time(), self._rng)
        return ApprovalWatcher(self, tenant, where, ends_at=ends_at)

    def enter(self, watcher: ApprovalWatcher) -> None:
        """Subscribes a watcher: it misses no change from now on."""
        self._watchers.setdefault(watcher.tenant, set()).add(watcher)

    def leave(self, watcher: ApprovalWatcher) -> None:
        """Forgets a watcher."""
        of_tenant = self._watchers[watcher.tenant]
        of_tenant.discard(watcher)
        if not of_tenant:
            del self._watchers[watcher.tenant]

    def notify(self, tenant: str, approval_id: str) -> None:
        """Takes that an approval was requested, or has changed."""
        if tenant in self._watchers:
            self._changed.setdefault(tenant, {})[approval_id] = None
            self._has_changed.set()

    def begin_anew(self) -> None:
        """Lets every watcher begin with a snapshot: the change stream was opened, and changes may have been missed."""
        self.is_open = True
        for tenant in self._watchers:
            self._begin_anew(tenant, ResetReason.STREAM_LOST)

    def lost(self) -> None:
        """Takes that the change stream is lost. Watchers that begin now wait for `begin_anew`."""
        self.is_open = False

    def drain(self) -> None:
        """Ends every stream, so that its client goes on with another replica."""
        self.draining = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.wake()

    async def run(self) -> None:
        """Reads what changes, and gives it to the watchers, until it is cancelled."""
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            changed, self._changed = self._changed, {}
            for tenant, ids in changed.items():
                await self._publish(tenant, list(ids))

    async def _publish(self, tenant: str, ids: Sequence[str]) -> None:
        """Reads these approvals for the tenant's watchers. If that fails, they begin anew."""
        try:
            for first in range(0, len(ids), READ_AT_ONCE):
                if tenant not in self._watchers:
                    return
                for approval in await self.store.approvals_by_id(tenant, ids[first : first + READ_AT_ONCE]):
                    await self._deliver(approval)
        except ServiceUnavailable:
            logger.warning("changed approvals not read: the database is unavailable; their watchers begin anew")
        except Exception:
            logger.exception("changed approvals not read because of a defect; their watchers begin anew")
        else:
            return
        self._begin_anew(tenant, ResetReason.NOT_READ)

    async def _deliver(self, approval: Approval) -> None:
        """Gives an approval to the watchers that it may concern; it is encoded once for all of them."""
        watchers: Iterable[ApprovalWatcher] = self._watchers.get(approval.tenant, ())
        if concerned := [watcher for watcher in watchers if watcher.where.concerns(approval)]:
            change = Change(approval, await self.encode(approval))
            for watcher in concerned:
                watcher.put(change)

    def _begin_anew(self, tenant: str, reason: ResetReason) -> None:
        for watcher in self._watchers.get(tenant, ()):
            watcher.begin_anew(reason)
