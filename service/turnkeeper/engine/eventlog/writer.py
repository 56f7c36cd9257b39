"""The way into the log: decide on what was read, store, and read again where something had moved."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Generic, TypeVar

from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot, SessionCache
from turnkeeper.engine.rules.decide_again import DecideAgain
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feed import Feeds
from turnkeeper.errors import ServiceUnavailable, SessionError, SessionNotFound
from turnkeeper.store.changeset import Changeset, CommitResult, Committed, Duplicate, RequestKey, RequestRecord
from turnkeeper.store.contract import SessionLog
from turnkeeper.telemetry.metrics import Metrics

TRIES = 64
"""How often a decision is made anew before its caller is told to come back: many writers on one session collide."""
UNANSWERED = 4096
"""Steps without a verdict whose first sending is remembered: those under way, and some that were given up."""

_SHOWN = ("reason", "http_status", "cause", "tools", "limit")
"""What of a failed turn's metadata an operator needs; none of it is content."""
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """What a decision came to. `draft` is as it was stored; `committed` None: there was nothing to store.

    `seen`: what it was decided on.
    """

    value: T
    uow: UnitOfWork
    committed: Committed | None
    seen: CachedSnapshot


class LogWriter:
    """Stores steps and tells the feeds of this replica."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        store: SessionLog,
        feeds: Feeds,
        metrics: Metrics,
        *,
        session_cache: SessionCache,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        jitter: Callable[[], float],
    ) -> None:
        """`now` for people; `jitter` gives 0..1."""
        self._store = store
        self._feeds = feeds
        self._metrics = metrics
        self._session_cache = session_cache
        self._jitter = jitter
        self.claimable = asyncio.Event()
        """Set whenever a step left a turn to whoever claims it."""
        self._sent: dict[str, float] = {}
        """When each step without a verdict was first sent: an answer that comes late may be an old one."""
        self.now = now
        self.new_id = new_id

    async def commit(self, step: Changeset) -> CommitResult:
        """Store one step. What is stored is published after the verdict, never before (promise I2)."""
        sent_at = self._sent.setdefault(step.changeset_id, time.monotonic())
        if len(self._sent) > UNANSWERED:
            del self._sent[next(iter(self._sent))]
        verdict = await self._store.commit(step)
        self._sent.pop(step.changeset_id, None)
        if isinstance(verdict, Committed):
            self._feeds.publish(step, verdict, sent_at=sent_at)
            for turn in step.turns:
                self._count(turn)
            if step.head.wake is not None:
                self.claimable.set()
        return verdict

    async def append(
        self,
        key: SessionKey,
        decide: Callable[[UnitOfWork], T],
        *,
        turn_id: str = "",
        deleted: bool = False,
        request: RequestKey | None = None,
    ) -> Stored[T] | RequestRecord:
        """Decide on a fresh snapshot until the decision is stored; for everybody but a turn's owner.

        A RequestRecord means that the request had had its effect before; with `request`, this is looked for first. Such
        a decision is tried once on what is kept of a session, without any read. Raises what `decide` raises;
        SessionNotFound, also for a deleted session unless `deleted`; ServiceUnavailable when others were faster every
        time.
        """
        kept = self._session_cache.take(key) if request is not None else None
        if kept is not None and (stored := await self._on_kept(kept, decide)) is not None:
            return stored
        for tried in range(TRIES):
            snapshot = await self._store.snapshot(key, turn_id=turn_id, deleted=deleted, request=request)
            if snapshot is None:
                raise SessionNotFound(session_id=key.session_id)
            if snapshot.request is not None:
                return snapshot.request
            seen = CachedSnapshot.now(snapshot)
            uow = self._unit_of_work(seen)
            stored = await self._put(uow, decide(uow), seen)
            if stored is not None:
                return stored
            await asyncio.sleep(self._jitter() * 0.002 * min(tried + 1, 16))
        raise ServiceUnavailable(
            "Too many writers are at work on this session; send the same call again with the same request_id.",
            session_id=key.session_id,
        )

    async def append_prepared(
        self,
        key: SessionKey,
        prepare: Callable[[], Awaitable[Callable[[UnitOfWork], T]]],
        *,
        turn_id: str = "",
        deleted: bool = False,
    ) -> Stored[T] | RequestRecord:
        """Stores a decision that needs more than the snapshot.

        `prepare` reads what is needed and returns the decision on it. It is called again each time the decision raises
        DecideAgain. Raises what `prepare` raises, and otherwise as `append`.
        """
        while True:
            decide = await prepare()
            try:
                return await self.append(key, decide, turn_id=turn_id, deleted=deleted)
            except DecideAgain:
                continue

    async def _on_kept(
        self, kept: CachedSnapshot, decide: Callable[[UnitOfWork], T]
    ) -> Stored[T] | RequestRecord | None:
        """None when it must be decided on what is read: only what is stored proves that what is kept was true."""
        uow = self._unit_of_work(kept)
        try:
            value = decide(uow)
        except SessionError:
            return None
        return await self._put(uow, value, kept) if uow.has_changes else None

    def _unit_of_work(self, seen: CachedSnapshot) -> UnitOfWork:
        return UnitOfWork(seen.snapshot, at=self.now(), new_id=self.new_id)

    async def _put(self, uow: UnitOfWork, value: T, seen: CachedSnapshot) -> Stored[T] | RequestRecord | None:
        """None when it is stale."""
        if not uow.has_changes:
            return Stored(value, uow, None, seen)
        verdict = await self.commit(uow.changeset(changeset_id=self.new_id(), fence=None))
        if isinstance(verdict, Committed):
            self._session_cache.keep(replace(seen, snapshot=uow.snapshot_after(verdict, by_owner=False)))
            return Stored(value, uow, verdict, seen)
        if isinstance(verdict, Duplicate):
            return verdict.record
        self._metrics.append_retry("STALE")
        return None

    def _count(self, turn: Turn) -> None:
        """An ended turn, whoever ended it."""
        if not turn.state.ended:
            return
        seconds = (turn.update_time - turn.create_time).total_seconds()
        self._metrics.turn_finished(turn.state.value, seconds=max(0.0, seconds))
        self._metrics.tokens("input", count=turn.usage.input_tokens)
        self._metrics.tokens("output", count=turn.usage.output_tokens)
        if turn.error is not None:
            self._metrics.error(turn.error.code)
            about = {key: turn.error.metadata[key] for key in _SHOWN if key in turn.error.metadata}
            where = {"session": turn.session_id, "turn": turn.id}
            logger.warning(
                "a turn of agent %s failed: %s %s", turn.agent, turn.error.code.name, about or "", extra=where
            )
        elif turn.answer:
            self._metrics.message("ASSISTANT")
