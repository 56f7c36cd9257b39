"""One watcher's way through the inbox: it subscribes, sends the snapshot in pages, then what changes.

What changes while the snapshot is read is kept, and compared with what was sent only behind it: a page may show an
approval as it was before. So nothing is missed, and the last that is sent of an approval is its newest state.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol, Self

from turnkeeper.admission.gate import rest
from turnkeeper.admission.memory import MemoryPart
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.engine.streaming.wakeups import NEVER, DeadlineTimers
from turnkeeper.errors import ServerDraining, StreamRotated
from turnkeeper.store.contract import ApprovalStore
from turnkeeper.store.filters import ApprovalFilter
from turnkeeper.telemetry.metrics import Metrics

PAGE: Final = 100
"""Approvals of a page of the snapshot, and of a response."""
BATCH_BYTES: Final = 256 * 1024
"""A response ends before it has more bytes, unless one approval alone has."""
MOST_KEPT: Final = 1_000
"""Changes that wait for a reader. One that is slower begins anew: a snapshot costs less than what it has missed."""
MOST_KEPT_BYTES: Final = 1 << 20
"""The same in bytes."""
KNOWN_BYTES: Final = 128
"""What a watcher holds for each PENDING approval that it has sent."""


class ResetReason(StrEnum):
    """Why a watcher begins anew."""

    STREAM_LOST = "STREAM_LOST"
    """The change stream was opened again."""
    NOT_READ = "NOT_READ"
    """Changed approvals could not be read."""
    SLOW_READER = "SLOW_READER"


@dataclass(frozen=True, slots=True)
class Change:
    """An approval as it was read after it had changed, for all watchers."""

    approval: Approval
    wire: bytes


@dataclass(slots=True)
class ApprovalBatch:
    """What one response has. Without anything in it, it is a heartbeat."""

    approvals: list[bytes] = field(default_factory=list)
    """Those that match."""
    gone: list[bytes] = field(default_factory=list)
    """Those that no longer match."""
    caught_up: bool = False
    reset: bool = False


class WatchedInbox(Protocol):
    """The inbox, as its watchers use it."""

    store: ApprovalStore
    encode: Callable[[Approval], Awaitable[bytes]]
    metrics: Metrics
    keep_alive: float
    timers: DeadlineTimers
    pages: asyncio.Semaphore
    memory: MemoryPart
    is_open: bool
    draining: bool

    def enter(self, watcher: "ApprovalWatcher") -> None: ...

    def leave(self, watcher: "ApprovalWatcher") -> None: ...


class ApprovalWatcher:
    """One reader of the inbox: the caller calls `next` until it raises."""

    __slots__ = (
        "_after",
        "_anew",
        "_began",
        "_counted",
        "_ends_at",
        "_future",
        "_inbox",
        "_kept",
        "_kept_bytes",
        "_known",
        "_reads",
        "_resets",
        "_returned",
        "deadline",
        "listed",
        "tenant",
        "where",
    )

    def __init__(self, inbox: WatchedInbox, tenant: str, where: ApprovalFilter, *, ends_at: float) -> None:
        """`ends_at` is the stream's planned end, by the loop's clock."""
        self._inbox = inbox
        self.tenant = tenant
        self.where = where
        self._ends_at = ends_at
        self._kept: dict[str, Change] = {}
        """Changes that were not sent yet, by approval: the newest of each."""
        self._kept_bytes = 0
        self._known: set[str] = set()
        """The PENDING approvals that were sent: they are sent once more when they no longer match."""
        self._counted = 0
        self._after: tuple[datetime, str] | None = None
        self._anew = True
        """A snapshot begins as soon as the change stream is open."""
        self._reads = self._began = self._resets = self._returned = False
        self._future: asyncio.Future[None] | None = None
        self.deadline = self.listed = NEVER

    def __enter__(self) -> Self:
        """Subscribes the watcher, before anything is read for it."""
        self._inbox.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the subscription."""
        self.deadline = NEVER
        self._inbox.leave(self)
        self._inbox.memory.add(-self._counted * KNOWN_BYTES)

    def put(self, change: Change) -> None:
        """Takes a change that may concern the watcher."""
        if self._anew:
            return  # the snapshot that comes is newer
        earlier = self._kept.pop(change.approval.id, None)
        self._kept[change.approval.id] = change
        self._kept_bytes += len(change.wire) - (len(earlier.wire) if earlier is not None else 0)
        if len(self._kept) > 1 and (len(self._kept) > MOST_KEPT or self._kept_bytes > MOST_KEPT_BYTES):
            self.begin_anew(ResetReason.SLOW_READER)
        self.wake()

    def begin_anew(self, reason: ResetReason) -> None:
        """Lets the watcher begin with a snapshot again."""
        if self._began and not self._anew:
            self._inbox.metrics.inbox_reset(reason.value)
        self._anew = True
        self._forget_kept()
        self.wake()

    def wake(self) -> None:
        """Lets the watcher look for what there is to send."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def notify_deadline(self) -> None:
        """Wakes the watcher so that it returns a heartbeat."""
        self.wake()

    async def next(self) -> ApprovalBatch:
        """Returns the next response: approvals, the mark that the snapshot is complete, or a heartbeat.

        Raises StreamRotated or ServerDraining at a planned end, and ServiceUnavailable if the snapshot cannot be read.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + self._inbox.keep_alive
        while True:
            self._check_planned_end(clock())
            if self._anew and self._inbox.is_open:
                self._begin_snapshot()
            batch = await self._next_page() if self._reads and not self._anew else self._changes()
            if batch is None and clock() >= until:
                batch = ApprovalBatch()
            if batch is not None:
                self._count_known()
                self._returned = True
                return batch
            await self._wait(min(until, self._ends_at))

    def _check_planned_end(self, now: float) -> None:
        """Raises SessionError at a planned end, after the first response."""
        if self._returned and self._inbox.draining:
            raise ServerDraining
        if self._returned and now >= self._ends_at:
            raise StreamRotated

    def _begin_snapshot(self) -> None:
        self._resets, self._began = self._began, True
        self._anew, self._reads, self._after = False, True, None
        self._known.clear()

    async def _next_page(self) -> ApprovalBatch:
        """Returns the next page of the snapshot. Another page is read for what does not fit into the response."""
        async with self._inbox.pages:
            page = await self._inbox.store.approvals(self.tenant, self.where, limit=PAGE, after=self._after)
            batch, size = ApprovalBatch(reset=self._resets), 0
            for approval in page:
                wire = await self._inbox.encode(approval)
                if batch.approvals and size + len(wire) > BATCH_BYTES:
                    break
                batch.approvals.append(wire)
                size += len(wire)
                self._after = (approval.create_time, approval.id)
                self._note(approval, matches=True)
        self._resets = False
        batch.caught_up = len(page) < PAGE and len(batch.approvals) == len(page)
        self._reads = not batch.caught_up
        return batch

    def _changes(self) -> ApprovalBatch | None:
        """Returns what has changed for this watcher; None if nothing has."""
        if self._anew:
            return None
        batch, size = ApprovalBatch(), 0
        while self._kept and len(batch.approvals) + len(batch.gone) < PAGE:
            approval_id, change = next(iter(self._kept.items()))
            if size and size + len(change.wire) > BATCH_BYTES:
                break
            del self._kept[approval_id]
            self._kept_bytes -= len(change.wire)
            matches = self.where.matches(change.approval)
            if matches or approval_id in self._known:
                (batch.approvals if matches else batch.gone).append(change.wire)
                size += len(change.wire)
            self._note(change.approval, matches=matches)
        return batch if size else None

    def _note(self, approval: Approval, *, matches: bool) -> None:
        """Notes whether the reader has an approval that may change again: one that is not PENDING never does."""
        if matches and approval.state is ApprovalState.PENDING:
            self._known.add(approval.id)
        else:
            self._known.discard(approval.id)

    def _count_known(self) -> None:
        if grown := len(self._known) - self._counted:
            self._counted += grown
            self._inbox.memory.add(grown * KNOWN_BYTES)

    def _forget_kept(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0

    async def _wait(self, until: float) -> None:
        """Waits until there may be something to send, at most until this time of the loop's clock."""
        rest()
        self._future = asyncio.get_running_loop().create_future()
        self._inbox.timers.set(self, until)
        try:
            await self._future
        finally:
            self._future = None
