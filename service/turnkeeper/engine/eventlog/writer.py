"""Stores decisions in the event log, and makes a decision again if the session changed meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Generic, NoReturn, TypeVar

from turnkeeper.admission.gate import wanted_until
from turnkeeper.admission.load import Load
from turnkeeper.copies import replace
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.commit_counts import count_ended
from turnkeeper.engine.eventlog.lease import HeldLeases, LeaseLost
from turnkeeper.engine.eventlog.owner_reads import read_as_owner
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot, SessionCache
from turnkeeper.engine.eventlog.session_lines import Place, SessionLines
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.eventlog.step_log import log_steps
from turnkeeper.engine.rules.decide_again import DecideAgain
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.errors import ServiceUnavailable, SessionError, SessionNotFound
from turnkeeper.store.changeset import (
    Changeset,
    CommitResult,
    Committed,
    Creation,
    Duplicate,
    Fenced,
    LeaseChange,
    RequestKey,
    RequestRecord,
    Snapshot,
)
from turnkeeper.store.contract import SessionLog
from turnkeeper.telemetry.metrics import Metrics

MAX_TRIES = 64
"""Tries of one decision, at most, before its caller gets SessionContended."""
MAX_UNANSWERED = 4096
"""Changesets without a result whose first sending is recorded, at most. Beyond it the oldest record is dropped."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """A decision that is in the log, or that had nothing to store."""

    value: T
    """What the decision returned."""
    uow: UnitOfWork
    """The decision's changes, as they were stored."""
    committed: Committed | None
    """None if there was nothing to store."""
    cached: CachedSnapshot
    """The snapshot on which the decision was made."""


class LogWriter:
    """Stores decisions as changesets, and publishes their events to this replica's feeds."""

    def __init__(
        self,
        store: SessionLog,
        feeds: Feeds,
        metrics: Metrics,
        *,
        session_cache: SessionCache,
        held_leases: HeldLeases,
        sources: Sources,
    ) -> None:
        self.load = Load()
        """Gets how long commits take, and the turns that they store."""
        self._store = store
        self._feeds = feeds
        self._metrics = metrics
        self._session_cache = session_cache
        self._held_leases = held_leases
        self._jitter = sources.jitter
        self.lines = SessionLines(sources.jitter)
        """The callers that change one session, one after the other."""
        self._first_sent: dict[str, float] = {}
        """When each changeset without a result was first sent (monotonic seconds): any sending may be applied."""
        self.now = sources.now
        self.new_id = sources.new_id
        self.claimable = asyncio.Event()
        """Set whenever a changeset leaves a turn that any replica may claim at once."""
        self.observe: Callable[[Changeset, Committed], None] = log_steps
        """Called with each changeset that is stored; must not raise."""
        self.late_leases: asyncio.Queue[Changeset] = asyncio.Queue()
        """Changesets that take a lease, and whose result did not come in time: the turn may be this replica's."""

    def unit_of_work(self, snapshot: Snapshot) -> UnitOfWork:
        """Returns an empty unit of work on the snapshot."""
        return UnitOfWork(snapshot, at=self.now(), new_id=self.new_id)

    def notify_owner(self, key: SessionKey) -> None:
        """Makes the owner of the session's turn read the session again, if the turn runs on this replica."""
        self._held_leases.notify(key)

    async def commit(self, changeset: Changeset) -> CommitResult:
        """Stores one changeset, then publishes its events: never before they are stored (promise I2).

        Raises ServiceUnavailable if the result is unknown. The same changeset may then be committed again.
        """
        sent_at = self._first_sent.setdefault(changeset.changeset_id, time.monotonic())
        if len(self._first_sent) > MAX_UNANSWERED:
            del self._first_sent[next(iter(self._first_sent))]
        began = time.monotonic()
        try:
            result = await self._store.commit(changeset)
            seconds = time.monotonic() - began
            self._metrics.commit_finished(seconds)
            if not changeset.leased:  # many who write to one session wait for each other
                self.load.limit.committed(seconds)
        except ServiceUnavailable:
            if changeset.head.lease is LeaseChange.TAKE:
                self.late_leases.put_nowait(changeset)
            raise
        self._record(changeset, result, sent_at)
        return result

    async def late_result(self, changeset: Changeset) -> CommitResult | None:
        """Returns the result of a commit that raised ServiceUnavailable, and publishes its events, as soon as it is
        known.

        Returns None if nothing was stored, or if that stays unknown.
        """
        result = await self._store.outcome(changeset)
        if result is not None:
            self._record(changeset, result, self._first_sent.get(changeset.changeset_id, time.monotonic()))
        return result

    def _record(self, changeset: Changeset, result: CommitResult, sent_at: float) -> None:
        self._first_sent.pop(changeset.changeset_id, None)
        if isinstance(result, Committed):
            self._feeds.publish(changeset, result, sent_at=sent_at)
            self.observe(changeset, result)
            for turn in changeset.new_turns:
                self.load.accepted(turn)
            for turn in changeset.turns:
                self.load.changed(turn)
            count_ended(changeset, result, self._metrics)
            if changeset.head.wake == timedelta():
                self.claimable.set()

    async def append(
        self,
        key: SessionKey,
        decide: Callable[[UnitOfWork], T],
        *,
        turn_id: str = "",
        deleted: bool = False,
        request: RequestKey | None = None,
        place: Place | None = None,
    ) -> Stored[T] | RequestRecord:
        """Decides on a snapshot and stores the decision. Decides again if the session changed meanwhile.

        Callers of one session do so one after the other: see `enter`. With `request`, tries the decision on the cached
        snapshot first, without a read. Returns the request's RequestRecord if it had its effect before.

        Raises what `decide` raises, SessionNotFound if there is no such session or if it is deleted (unless `deleted`),
        SessionContended if the session changed during each of MAX_TRIES tries, and what `enter` raises. Waits between
        tries: see `pause`.
        """
        read = partial(self._read, key, turn_id=turn_id, deleted=deleted, request=request)
        if place is not None:
            return await self._append(key, decide, read=read, request=request, place=place)
        entered = await self.enter(key, decide, turn_id=turn_id, deleted=deleted, request=request)
        if not isinstance(entered, Place):
            return entered
        with entered:
            return await self._append(key, decide, read=read, request=request, place=entered)

    async def append_as_owner(
        self, key: SessionKey, decide: Callable[[UnitOfWork], T], *, turn_id: str, fence: int
    ) -> Stored[T] | RequestRecord:
        """Decides and stores as the owner with this fence, but extends no lease.

        Raises LeaseLost if another owner has the session, and otherwise as `append`.
        """
        read = partial(read_as_owner, self._store, key, turn_id=turn_id, fence=fence)
        with self.lines.owner_writes(key):
            return await self._append(key, decide, read=read, fence=fence)

    async def enter(
        self,
        key: SessionKey,
        decide: Callable[[UnitOfWork], T] | None,
        *,
        turn_id: str = "",
        deleted: bool = False,
        request: RequestKey | None = None,
    ) -> Place | Stored[T] | RequestRecord:
        """Stands in the session's line, and returns the first place in it, which the caller must leave.

        A decision that stores nothing needs no place: if others stand in line, it is made before, and what `append`
        returns is returned at once. `decide` is None if there may be no session yet. Raises what `decide` and
        `SessionLines.enter` raise, and SessionNotFound.
        """
        if decide is not None and self.lines.is_busy(key):
            async with self.lines.look(key):
                snapshot = await self._read(key, turn_id=turn_id, deleted=deleted, request=request)
            if snapshot.request is not None:
                return snapshot.request
            uow = self.unit_of_work(snapshot)
            with suppress(DecideAgain):
                value = decide(uow)
                if not uow.has_changes:
                    return Stored(value, uow, None, CachedSnapshot.fresh(snapshot))
        return await self.lines.enter(key)

    async def append_first(
        self, creation: Creation, decide: Callable[[UnitOfWork], T]
    ) -> Stored[T] | RequestRecord | None:
        """Decides on a session that does not exist yet, and stores it with the decision, in one changeset.

        `decide` appends the first event. Sends no read. Returns the request's RequestRecord if it had its effect
        before. Returns None, with nothing stored, if a session or a fork has the id, or if the database's time is not
        known here.
        """
        cached = self._session_cache.new(creation)
        if cached is None:
            return None
        uow = self.unit_of_work(cached.snapshot)
        return await self._store_decision(uow, decide(uow), cached, fence=None, creation=creation)

    async def append_on(
        self, snapshot: Snapshot, decide: Callable[[UnitOfWork], T], *, turn_id: str
    ) -> Stored[T] | RequestRecord:
        """Decides on a snapshot that was read for it; as `append` if others change the session. Raises as `append`."""
        key = snapshot.head.session_key
        if not self.lines.is_busy(key):
            uow = self.unit_of_work(snapshot)
            with await self.lines.enter(key):
                stored = await self._store_decision(uow, decide(uow), CachedSnapshot.fresh(snapshot), fence=None)
            if stored is not None:
                return stored
        return await self.append(key, decide, turn_id=turn_id)

    async def append_prepared(
        self,
        key: SessionKey,
        prepare: Callable[[], Awaitable[Callable[[UnitOfWork], T]]],
        *,
        turn_id: str = "",
        deleted: bool = False,
        place: Place | None = None,
    ) -> Stored[T] | RequestRecord:
        """Stores a decision that needs more than the snapshot.

        `prepare` reads what is needed and returns the decision on it. It is called again each time the decision raises
        DecideAgain; from the third try on with linearizable reads, because others may lag behind each other for long.
        Raises what `prepare` raises, and otherwise as `append`.
        """
        if place is None:
            with await self.lines.enter(key) as entered:
                return await self.append_prepared(key, prepare, turn_id=turn_id, deleted=deleted, place=entered)
        for number in range(1, MAX_TRIES + 1):
            with suppress(DecideAgain):
                async with self._store.linearizable() if number > 2 else nullcontext():
                    return await self.append(key, await prepare(), turn_id=turn_id, deleted=deleted, place=place)
            await self._pause(number, place)
        raise self.lines.contended(key)

    async def _append(
        self,
        key: SessionKey,
        decide: Callable[[UnitOfWork], T],
        *,
        read: Callable[[], Awaitable[Snapshot]],
        request: RequestKey | None = None,
        fence: int | None = None,
        place: Place | None = None,
    ) -> Stored[T] | RequestRecord:
        """Decides and stores as the owner with `fence`, or as the caller with `place`. Otherwise as `append`."""
        if place is not None:
            await place.let_owner_first()
        if request is not None and (cached := self._session_cache.pop(key)) is not None:
            stored = await self._append_cached(cached, decide)
            if stored is not None:
                return stored
        for number in range(1, MAX_TRIES + 1):
            snapshot = await read()
            if snapshot.request is not None:
                return snapshot.request
            if not snapshot.is_torn:
                uow = self.unit_of_work(snapshot)
                stored = await self._store_decision(uow, decide(uow), CachedSnapshot.fresh(snapshot), fence=fence)
                if stored is not None:
                    return stored
            await self._pause(number, place)
        raise self.lines.contended(key)

    async def pause(self, number: int) -> None:
        """Waits after the try of this number met another writer: 2 ms at most, growing to 32 ms, at random."""
        await asyncio.sleep(self._jitter() * 0.002 * min(number, 16))

    async def _pause(self, number: int, place: Place | None) -> None:
        """Waits after the try of this number, and lets the owner of the session's turn first."""
        await self.pause(number)
        if place is not None:
            await place.let_owner_first()

    async def _read(self, key: SessionKey, *, turn_id: str, deleted: bool, request: RequestKey | None) -> Snapshot:
        """Returns the session as it is stored. Raises SessionNotFound."""
        snapshot = await self._store.snapshot(key, turn_id=turn_id, deleted=deleted, request=request)
        if snapshot is None:
            raise SessionNotFound(session_id=key.session_id)
        return snapshot

    async def _append_cached(
        self, cached: CachedSnapshot, decide: Callable[[UnitOfWork], T]
    ) -> Stored[T] | RequestRecord | None:
        """Stores a decision on the cached snapshot. Returns None if it must be made again on a snapshot that is read.

        That holds for a refusal, and for a decision without changes: only a commit proves that the cache is up to date.
        """
        uow = self.unit_of_work(cached.snapshot)
        try:
            value = decide(uow)
        except SessionError:
            return None
        return await self._store_decision(uow, value, cached, fence=None) if uow.has_changes else None

    async def _store_decision(
        self,
        uow: UnitOfWork,
        value: T,
        cached: CachedSnapshot,
        *,
        fence: int | None,
        creation: Creation | None = None,
    ) -> Stored[T] | RequestRecord | None:
        """Stores a decision, and caches the snapshot after it. Returns None if the session changed since it was read.

        Returns the earlier record if the request had its effect before. Raises LeaseLost if another owner has the
        session.
        """
        if not uow.has_changes:
            return Stored(value, uow, None, cached)
        changeset = uow.changeset(changeset_id=self.new_id(), fence=fence)
        result = await self.commit(replace(changeset, creates=creation, wanted_until=wanted_until()))
        if isinstance(result, Committed):
            after = uow.snapshot_after(result, by_owner=fence is not None)
            self._session_cache.put(replace(cached, snapshot=after))
            return Stored(value, uow, result, cached)
        if isinstance(result, Duplicate):
            return result.record
        if isinstance(result, Fenced):
            raise LeaseLost
        self._metrics.append_retry("STALE")
        return None


def needs_place(_: UnitOfWork) -> NoReturn:
    """Stands for a decision that cannot be made before its caller has a place."""
    raise DecideAgain


def behind(key: SessionKey) -> ServiceUnavailable:
    """Returns the error of a call whose answer would rest on a reading that shows less than its decision did."""
    error = ServiceUnavailable(session_id=key.session_id)
    error.rests_on_reading = True
    return error
