"""Sessions that this replica has worked on lately: what their next turn needs, so that it reads nothing.

A kept snapshot is a guess. Who decides on it stores under the filter of any other step: when anybody has touched the
session since, the step is Stale, and it is decided again on what is read. What is *refused* meets no filter, so a
refusal is never given on a kept snapshot.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self

from turnkeeper.domain.event import Event
from turnkeeper.domain.history import HistoryEntry
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.store.changeset import Snapshot, StoredEvent
from turnkeeper.store.contract import EventLog

SESSIONS = 1024
"""Some KiB each: more than a replica runs at once, and few beside what it needs to run them."""
MEMORY_BYTES = 32 * 1024 * 1024
"""Of all conversations: a thousand of thirty messages, or ten of three thousand."""
GOOD_FOR = 600.0
"""Seconds from the reading. The snapshot's clock is the database's as it was then: a later primary's may differ."""


@dataclass(frozen=True, slots=True)
class CachedSnapshot:
    """A snapshot as it was read, or as steps of this replica have left it since.

    `clock`: the database's at the reading; `read_at`: when that was, by the monotonic clock of this process.
    """

    snapshot: Snapshot
    clock: datetime
    read_at: float

    @classmethod
    def now(cls, snapshot: Snapshot) -> Self:
        """Read just now."""
        return cls(snapshot, snapshot.head.now, time.monotonic())

    def by_now(self, now: float) -> Self:
        """With the database's clock as it must be by now: an expiry is computed from it."""
        head = replace(self.snapshot.head, now=self.clock + timedelta(seconds=now - self.read_at))
        return replace(self, snapshot=replace(self.snapshot, head=head))


class SessionCache:
    """Whatever is taken out is nobody else's until it is kept again: what goes wrong in between leaves nothing."""

    def __init__(
        self,
        store: EventLog,
        *,
        decode: Callable[[StoredEvent], Event],
        sessions: int = SESSIONS,
        memory_bytes: int = MEMORY_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._decode = decode
        self._sessions = sessions
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._seen: OrderedDict[SessionKey, CachedSnapshot] = OrderedDict()
        self._memories: OrderedDict[SessionKey, tuple[Session, Conversation]] = OrderedDict()
        self._size = 0
        self._lent: Counter[SessionKey] = Counter()
        self._deleted: set[SessionKey] = set()
        """Sessions that were deleted while somebody had their conversation: it is not kept again."""

    def keep(self, seen: CachedSnapshot) -> None:
        """The session after this replica's own committed step, or as it was read. Kept while nothing runs in it."""
        head = seen.snapshot.head
        key = head.session_key
        self._seen.pop(key, None)
        if head.deleted:
            self._forget(key)
            if self._lent[key]:
                self._deleted.add(key)
        if head.deleted or head.active_turn or head.queue or key in self._deleted:
            return
        idle = replace(seen.snapshot, turn=None, calls=(), approvals=(), request=None)
        self._seen[key] = replace(seen, snapshot=idle)
        while len(self._seen) > self._sessions:
            self._seen.popitem(last=False)

    def take(self, key: SessionKey) -> CachedSnapshot | None:
        """The session as it was last known, to decide on once."""
        seen = self._seen.pop(key, None)
        now = self._clock()
        return seen.by_now(now) if seen is not None and now - seen.read_at < GOOD_FOR else None

    def recall(self, session: Session) -> Conversation:
        """The session's conversation as far as it is known here; of another session that had this id, nothing.

        Whoever takes it gives it back, by `remember`.
        """
        key = session.key
        self._lent[key] += 1
        known = self._forget(key)
        if known is not None and known[0].create_time == session.create_time:
            return known[1]
        return Conversation(self._store, key=key, decode=self._decode)

    def remember(self, session: Session, memory: Conversation) -> None:
        """What `recall` gave, grown since; nothing of a session that was deleted here meanwhile.

        The oldest go first when there is no room.
        """
        key = session.key
        self._forget(key)
        gone = key in self._deleted
        self._returned(key)
        if gone:
            return
        self._memories[key] = (session, memory)
        self._size += memory.size
        while len(self._memories) > self._sessions or self._size > self._memory_bytes:
            self._forget(next(iter(self._memories)))

    async def entries(self, session: Session, *, until: int) -> Sequence[HistoryEntry]:
        """The conversation up to this number at least, for somebody who pages through it. Raises ServiceUnavailable."""
        memory = self.recall(session)
        try:
            await memory.read(until=until)
            return memory.entries()
        finally:
            self.remember(session, memory)

    def _returned(self, key: SessionKey) -> None:
        self._lent[key] -= 1
        if self._lent[key] <= 0:
            del self._lent[key]
            self._deleted.discard(key)

    def _forget(self, key: SessionKey) -> tuple[Session, Conversation] | None:
        known = self._memories.pop(key, None)
        if known is not None:
            self._size -= known[1].size
        return known
