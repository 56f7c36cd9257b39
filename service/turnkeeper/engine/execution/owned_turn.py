"""Keeps what the owner of a turn read of it last, and stores the owner's decisions under its lease."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

from turnkeeper import lease_clock
from turnkeeper.copies import replace
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.engine.eventlog.lease import OWNER_PATIENCE, HeldLease, LeaseLost
from turnkeeper.engine.eventlog.owner_reads import read_as_owner
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.rules.turns import CallsAreGone
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Committed, Conflict, LogEnd, Snapshot

T = TypeVar("T")


class OwnedTurn:
    """A turn that this replica owns. Every write names the lease's fence, and extends the lease."""

    def __init__(self, services: RunServices, *, lease: HeldLease, cached: CachedSnapshot) -> None:
        self._services = services
        self._conversation: Conversation | None = None
        self.lease = lease
        self.cached = cached

    @classmethod
    async def open(cls, services: RunServices, *, lease: HeldLease, cached: CachedSnapshot | None) -> Self:
        """Returns the turn as in `cached`, the snapshot of the commit that took the lease; reads it if that is None.

        Raises as `retry_while_held`, and LeaseLost if another owner has the session.
        """
        if cached is None:
            snapshot = await retry_while_held(services, lease, lambda: _read(services, lease))
            cached = CachedSnapshot.fresh(snapshot)
        if cached.snapshot.turn is None or cached.snapshot.head.fence != lease.fence:
            raise LeaseLost
        return cls(services, lease=lease, cached=cached)

    @property
    def snapshot(self) -> Snapshot:
        """Returns the session as the owner last read or wrote it."""
        return self.cached.snapshot

    @property
    def turn(self) -> Turn:
        """Returns the turn as the owner last read or wrote it. Raises LookupError if the snapshot has none."""
        if self.snapshot.turn is None:
            raise LookupError("the snapshot has no turn")
        return self.snapshot.turn

    @property
    def is_cancel_requested(self) -> bool:
        """Returns True if the owner has read a request to cancel the turn."""
        return self.snapshot.head.cancel.turn_id == self.turn.id

    async def read_conversation(self, conversation: Conversation) -> None:
        """Reads the conversation up to the snapshot. Every later `append` and `read` keeps it up to date.

        Raises as `retry_while_held`.
        """
        await retry_while_held(self._services, self.lease, lambda: conversation.read(until=self.snapshot.head.end))
        self._conversation = conversation

    async def hold(self) -> None:
        """Returns as soon as the lease is surely held: what the owner starts right after that is its to start.

        A lease that was not renewed in time is renewed first, under its fence: the owner or the database was slow or
        stopped, and no other replica has taken the turn yet. Raises LeaseLost if one has, or if that stays unknown
        for OWNER_PATIENCE.
        """
        lease, began = self.lease, lease_clock.now()
        while not lease.surely_held:
            sent_at = lease_clock.now()
            try:
                is_ours = await self._services.leases.renew(
                    lease.key, owner=lease.owner, fence=lease.fence, lease=lease.duration
                )
            except ServiceUnavailable:
                lease.check_tries(since=began)
                await _pause(self._services)
                continue
            if not is_ours:
                raise LeaseLost
            lease.renewed(sent_at)
            lease.check_tries(since=began)

    async def append(self, decide: Callable[[UnitOfWork], T]) -> T:
        """Stores a decision, and returns what `decide` returned. One that changes nothing still extends the lease.

        Reads the session and decides again if another write came first: a message was queued, an approval decided. It
        pauses before that, as callers do; callers of the session let it first. Raises LeaseLost if another owner has
        the session, or for CallsAreGone; ServiceUnavailable if the result stays unknown for OWNER_PATIENCE, and what
        `decide` raises otherwise.
        """
        with self._services.log_writer.lines.owner_writes(self.lease.key):
            return await self._append(decide)

    async def _append(self, decide: Callable[[UnitOfWork], T]) -> T:
        tries = 0
        while True:
            tries += 1
            self.cached = self.cached.at(time.monotonic())
            uow = self._services.log_writer.unit_of_work(self.snapshot)
            try:
                value = decide(uow)
            except CallsAreGone:
                raise LeaseLost from None
            committed = await self._commit(uow)
            if committed is not None:
                before, after = self.snapshot.head.end, uow.snapshot_after(committed, by_owner=True)
                self.cached = replace(self.cached, snapshot=after)
                if self._conversation is not None:
                    self._conversation.extend(uow.stored_events(committed), after=before, end=after.head.end)
                return value
            await self._services.log_writer.pause(tries)
            await self.read()

    async def read(self) -> None:
        """Reads the session again, and its conversation. Tries again while the database is unavailable.

        Raises LeaseLost if another owner has the session, or if the log no longer has what this owner has read or
        stored. The database was restored then, and the turn's next owner continues what is there. Raises
        ServiceUnavailable if only a newer version can read the session.
        """
        while True:
            try:
                snapshot = await _read(self._services, self.lease)
                if snapshot.turn is None or not await self._continues(snapshot.head.end):
                    raise LeaseLost
            except ServiceUnavailable as error:
                if error.needs_newer_version:
                    raise
                await _pause(self._services)
                continue
            self.cached = CachedSnapshot.fresh(snapshot)
            return

    async def _continues(self, end: LogEnd) -> bool:
        """Reads the conversation up to this end. Returns False if the log is not the one that this owner knows."""
        if self._conversation is not None:
            return await self._conversation.read(until=end)
        known = self.snapshot.head.end
        return known == end or await self._services.store.holds(self.lease.key, known)

    async def _commit(self, uow: UnitOfWork) -> Committed | None:
        """Commits the changeset, and renews the lease. Returns None if the session changed since it was read.

        Sends the same changeset again while its result is unknown, for OWNER_PATIENCE at most. The lease is counted
        from the first sending, which may be the one that was applied. Raises LeaseLost if another owner has the
        session, ServiceUnavailable if the result is still unknown then.
        """
        log_writer, metrics, lease = self._services.log_writer, self._services.metrics, self.lease
        changeset = uow.changeset(changeset_id=log_writer.new_id(), fence=lease.fence, lease_for=lease.duration)
        changeset = replace(changeset, owner=lease.owner)
        sent_at = lease_clock.now()
        while True:
            try:
                with lease.writing():
                    result = await log_writer.commit(changeset)
            except ServiceUnavailable:
                if lease_clock.now() - sent_at > OWNER_PATIENCE:
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


async def _read(services: RunServices, lease: HeldLease) -> Snapshot:
    """Returns the session as its owner. Raises as `read_as_owner`."""
    return await read_as_owner(services.store, lease.key, turn_id=lease.turn_id, fence=lease.fence, owner=lease.owner)


async def retry_while_held(services: RunServices, lease: HeldLease, read: Callable[[], Awaitable[T]]) -> T:
    """Returns what `read` returns. Calls it again while the database is unavailable.

    Raises LeaseLost if the lease is lost, or the database unavailable for longer than OWNER_PATIENCE. Raises
    ServiceUnavailable if only a newer version can read it: to try again would keep the turn here for good.
    """
    began = lease_clock.now()
    while True:
        try:
            return await read()
        except ServiceUnavailable as error:
            if error.needs_newer_version:
                raise
            lease.check_tries(since=began)
            await _pause(services)


async def _pause(services: RunServices) -> None:
    """Waits 0.1 to 0.5 s at random, so that the owners of many turns do not retry at the same time."""
    await asyncio.sleep(0.1 + services.jitter() * 0.4)
