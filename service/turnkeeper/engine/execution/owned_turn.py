"""A turn under its owner's lease: what the owner read of it last, and how the owner's decisions are stored."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Self, TypeVar

from turnkeeper.domain.turn import Turn
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.engine.eventlog.lease import HeldLease, LeaseLost
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Committed, Conflict, Snapshot

T = TypeVar("T")


class OwnedTurn:
    """One turn that this replica owns. Every write is under the lease's fence, and extends the lease."""

    def __init__(self, services: RunServices, *, lease: HeldLease, cached: CachedSnapshot) -> None:
        self._services = services
        self._conversation: Conversation | None = None
        self.lease = lease
        self.cached = cached

    @classmethod
    async def open(cls, services: RunServices, *, lease: HeldLease, cached: CachedSnapshot | None) -> Self:
        """Returns the turn as the commit that took the lease left it in `cached`; reads it if that is None.

        Raises LeaseLost if the fence does not hold any more, or if the database is unavailable until the lease is not
        sure any more.
        """
        if cached is None:
            snapshot = await while_sure(
                services, lease, lambda: services.store.snapshot(lease.key, turn_id=lease.turn_id)
            )
            if snapshot is None:
                raise LeaseLost
            cached = CachedSnapshot.fresh(snapshot)
        if cached.snapshot.turn is None or cached.snapshot.head.fence != lease.fence:
            raise LeaseLost
        return cls(services, lease=lease, cached=cached)

    @property
    def snapshot(self) -> Snapshot:
        """The session as the owner knows it."""
        return self.cached.snapshot

    @property
    def turn(self) -> Turn:
        """The turn as the owner knows it. Raises LookupError if the snapshot has none."""
        if self.snapshot.turn is None:
            raise LookupError("the snapshot has no turn")
        return self.snapshot.turn

    @property
    def is_cancel_requested(self) -> bool:
        """True if the turn is to be cancelled, as far as the owner has read."""
        return self.snapshot.head.cancel.turn_id == self.turn.id

    async def read_conversation(self, conversation: Conversation) -> None:
        """Reads the conversation up to the snapshot. From then on it is kept up with every write and read.

        Raises LeaseLost if the database is unavailable until the lease is not sure any more.
        """
        await while_sure(self._services, self.lease, lambda: conversation.read(until=self.snapshot.head.last_seq))
        self._conversation = conversation

    async def append(self, decide: Callable[[UnitOfWork], T]) -> T:
        """Stores a decision, also one that changes nothing: this extends the lease.

        If another write came first (a message was queued, an approval decided), reads the session and decides again.
        Raises LeaseLost if the fence does not hold any more, ServiceUnavailable if the result is unknown for two
        leases, and what `decide` raises.
        """
        while True:
            self.cached = self.cached.at(time.monotonic())
            uow = self._services.log_writer.unit_of_work(self.snapshot)
            value = decide(uow)
            committed = await self._commit(uow)
            if committed is not None:
                self.cached = replace(self.cached, snapshot=uow.snapshot_after(committed, by_owner=True))
                if self._conversation is not None:
                    self._conversation.extend(uow.stored_events(committed))
                return value
            await self.read()

    async def read(self) -> None:
        """Reads the session again, and its conversation. Tries again while the database is unavailable.

        Raises LeaseLost if the fence does not hold any more.
        """
        while True:
            try:
                snapshot = await self._services.store.snapshot(self.lease.key, turn_id=self.lease.turn_id)
                if snapshot is None or snapshot.head.fence != self.lease.fence:
                    raise LeaseLost
                if self._conversation is not None:
                    await self._conversation.read(until=snapshot.head.last_seq)
            except ServiceUnavailable:
                await _pause(self._services)
                continue
            self.cached = CachedSnapshot.fresh(snapshot)
            return

    async def _commit(self, uow: UnitOfWork) -> Committed | None:
        """Returns None if the session changed since it was read.

        Sends the same changeset again while no result comes, for two leases at most. The lease counts from the first
        sending: any of them may be the one that was applied.
        """
        log_writer, metrics, lease = self._services.log_writer, self._services.metrics, self.lease
        changeset = uow.changeset(changeset_id=log_writer.new_id(), fence=lease.fence, lease_for=lease.duration)
        sent_at = time.monotonic()
        while True:
            try:
                with lease.writing():
                    result = await log_writer.commit(changeset)
            except ServiceUnavailable:
                if time.monotonic() - sent_at > 2 * lease.duration.total_seconds():
                    raise
                metrics.append_retry("UNAVAILABLE")
                await _pause(self._services)
                continue
            if isinstance(result, Committed):
                lease.renewed(sent_at)
                return result
            if isinstance(result, Conflict):
                metrics.append_retry("STALE")
                return None
            metrics.fenced_write("FENCED")
            raise LeaseLost


async def while_sure(services: RunServices, lease: HeldLease, read: Callable[[], Awaitable[T]]) -> T:
    """Returns what `read` returns. Calls it again while the database is unavailable: that alone loses no owner.

    Raises LeaseLost once the lease is not sure any more.
    """
    while True:
        try:
            return await read()
        except ServiceUnavailable:
            lease.check()
            await _pause(services)


async def _pause(services: RunServices) -> None:
    await asyncio.sleep(0.1 + services.jitter() * 0.4)
