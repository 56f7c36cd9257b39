"""Sessions that this replica worked on lately, cached so that their next turn starts without a read.

A cached snapshot may be out of date. A decision on it is stored under the same filter as any other: if the session
changed since, the commit is a Conflict, and the decision is made again on a snapshot that is read. A refusal stores
nothing and so meets no filter. Therefore no request is refused on a cached snapshot.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from turnkeeper.admission.memory import MemoryBudget
from turnkeeper.copies import replace
from turnkeeper.domain.event import Event
from turnkeeper.domain.history import HistoryEntry
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.store.changeset import Creation, LogEnd, Snapshot, StoredEvent
from turnkeeper.store.contract import EventLog

MAX_SESSIONS = 1024
"""Snapshots cached at a time, some KiB each; a replica runs fewer turns at once."""
CONVERSATION_BYTES = 32 * 1024 * 1024
"""Bytes of all cached conversations together: a thousand of thirty messages, or ten of three thousand."""
SNAPSHOT_BYTES = 4 * 1024
"""Memory of a snapshot of an idle session, about."""
MAX_AGE = 600.0
"""Seconds from the read. The database's time is computed from the read on, and a later primary's clock may differ."""


@dataclass(frozen=True, slots=True)
class CachedSnapshot:
    """A snapshot as it was read, or as this replica's own commits have left it since."""

    snapshot: Snapshot
    database_time: datetime
    """At the read, by the database's clock."""
    read_at: float
    """Seconds at the read, by this process's monotonic clock."""

    @classmethod
    def fresh(cls, snapshot: Snapshot) -> Self:
        """Returns a snapshot that was read just now."""
        return cls(snapshot, snapshot.head.now, time.monotonic())

    def at(self, now: float) -> Self:
        """Returns it with the database's time moved on to `now`, in monotonic seconds; expiry is computed from it."""
        head = replace(self.snapshot.head, now=self.database_time + timedelta(seconds=now - self.read_at))
        return replace(self, snapshot=replace(self.snapshot, head=head))


class SessionCache:
    """The snapshots of idle sessions, and the conversations of sessions that are not in use here.

    An entry that is popped or checked out is no longer in the cache. It is put back only after success, so an error in
    between leaves nothing wrong behind.
    """

    def __init__(
        self,
        store: EventLog,
        *,
        decode: Callable[[StoredEvent], Event],
        max_sessions: int = MAX_SESSIONS,
        conversation_bytes: int = CONVERSATION_BYTES,
        memory: MemoryBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._decode = decode
        self._max_sessions = max_sessions
        self._conversation_bytes = conversation_bytes
        self._clock = clock
        self._memory = (memory or MemoryBudget()).part("sessions", shrink=self.shrink)
        self._snapshots: OrderedDict[SessionKey, CachedSnapshot] = OrderedDict()
        self._conversations: OrderedDict[SessionKey, tuple[Session, Conversation]] = OrderedDict()
        self._size = 0
        """Bytes of the cached conversations."""
        self._checked_out: Counter[SessionKey] = Counter()
        self._newest: CachedSnapshot | None = None
        """The snapshot that was read last, of any session."""
        self._deleted: set[SessionKey] = set()
        """Sessions deleted while their conversation was checked out: nothing of them is cached until it is back."""

    def put(self, cached: CachedSnapshot) -> None:
        """Caches a session as it was read, or as this replica's own commit left it.

        Drops what was cached of it before. Caches nothing while the session has a turn, or once it is deleted.
        """
        head = cached.snapshot.head
        key = head.session_key
        if self._newest is None or cached.read_at > self._newest.read_at:
            self._newest = cached
        self._take_snapshot(key)
        if head.deleted:
            self._drop_conversation(key)
            if self._checked_out[key]:
                self._deleted.add(key)
        if head.deleted or head.active_turn or head.queue or key in self._deleted:
            return
        idle = replace(cached.snapshot, turn=None, calls=(), approvals=(), request=None)
        self._snapshots[key] = replace(cached, snapshot=idle)
        self._memory.add(SNAPSHOT_BYTES)
        while len(self._snapshots) > self._max_sessions:
            self._take_snapshot(next(iter(self._snapshots)))

    def pop(self, key: SessionKey) -> CachedSnapshot | None:
        """Removes and returns the session's snapshot, for one decision. Returns None if there is none, or it is older
        than MAX_AGE.
        """
        cached = self._take_snapshot(key)
        now = self._clock()
        return cached.at(now) if cached is not None and now - cached.read_at < MAX_AGE else None

    def knows(self, key: SessionKey) -> bool:
        """Returns True if something of this session is cached or in use here: there was such a session."""
        return key in self._snapshots or key in self._conversations or key in self._checked_out

    def new(self, creation: Creation) -> CachedSnapshot | None:
        """Returns the snapshot of a session that does not exist yet, for its first decision.

        Its database time is computed from the last read of any session. Returns None if that is older than MAX_AGE.
        """
        newest, now = self._newest, self._clock()
        if newest is None or now - newest.read_at >= MAX_AGE:
            return None
        head = creation.head(now=newest.database_time)
        snapshot = Snapshot(head=head, session=creation.session, turn=None, calls=(), approvals=())
        return replace(newest, snapshot=snapshot).at(now)

    def checkout(self, session: Session) -> Conversation:
        """Removes and returns the session's conversation as far as it is known here; the caller checks it in again.

        Returns an empty one if none is cached, or if the cached one is of an earlier session with the same id.
        """
        key = session.key
        self._checked_out[key] += 1
        cached = self._take_conversation(key)
        if cached is not None and cached[0].create_time == session.create_time:
            return cached[1]
        if cached is not None:
            cached[1].close()
        return Conversation(self._store, key=key, decode=self._decode, resized=self._memory.add)

    def checkin(self, session: Session, conversation: Conversation) -> None:
        """Caches what `checkout` returned, unless the session was deleted here meanwhile.

        Drops the conversations that were used longest ago until the rest fits.
        """
        key = session.key
        self._drop_conversation(key)
        deleted = key in self._deleted
        self._count_checkin(key)
        if deleted:
            conversation.close()
            return
        self._conversations[key] = (session, conversation)
        self._size += conversation.size
        while len(self._conversations) > self._max_sessions or self._size > self._conversation_bytes:
            self._drop_conversation(next(iter(self._conversations)))

    async def entries(self, session: Session, *, until: LogEnd) -> Sequence[HistoryEntry]:
        """Returns the conversation up to this end of the log, or further.

        Raises ServiceUnavailable if the database is unavailable.
        """
        conversation = self.checkout(session)
        try:
            await conversation.read(until=until)
            return conversation.entries()
        finally:
            self.checkin(session, conversation)

    def _count_checkin(self, key: SessionKey) -> None:
        self._checked_out[key] -= 1
        if self._checked_out[key] <= 0:
            del self._checked_out[key]
            self._deleted.discard(key)

    def shrink(self, size: int) -> None:
        """Drops what was used longest ago, until so many bytes are given back; conversations first."""
        goal = self._memory.used - size
        while self._conversations and self._memory.used > goal:
            self._drop_conversation(next(iter(self._conversations)))
        while self._snapshots and self._memory.used > goal:
            self._take_snapshot(next(iter(self._snapshots)))

    def _drop_conversation(self, key: SessionKey) -> None:
        cached = self._take_conversation(key)
        if cached is not None:
            cached[1].close()

    def _take_conversation(self, key: SessionKey) -> tuple[Session, Conversation] | None:
        cached = self._conversations.pop(key, None)
        if cached is not None:
            self._size -= cached[1].size
        return cached

    def _take_snapshot(self, key: SessionKey) -> CachedSnapshot | None:
        cached = self._snapshots.pop(key, None)
        if cached is not None:
            self._memory.add(-SNAPSHOT_BYTES)
        return cached
