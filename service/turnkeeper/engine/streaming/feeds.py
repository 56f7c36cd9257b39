"""The feeds of this replica, by session, and the poll that finds what no notification reported.

A notification only names what to read: it may come late, twice or never. So each watched session's last number is also
read from the database at intervals.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.feed_memory import FeedMemory
from turnkeeper.engine.streaming.turn_cache import CachedTurn, TurnCache
from turnkeeper.engine.streaming.wakeups import wait_for_change
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Changeset, Committed, LogEnd
from turnkeeper.store.contract import EventLog

POLLS_SKIPPED = 10
"""While notifications arrive, one poll in POLLS_SKIPPED is made: it finds what a lost notification did not report."""
POLLED_AT_ONCE = 500
"""Sessions that one query of a poll reads."""
COMPARED_AT_ONCE = 32
"""Sessions whose logs are compared with what their feeds hold at the same time."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Feeds:
    """The feeds of this replica."""

    def __init__(
        self,
        store: EventLog,
        *,
        poll: float,
        delta_interval: timedelta = timedelta(),
        memory: FeedMemory | None = None,
    ) -> None:
        """`poll` in seconds: how late other replicas' events come without notifications.

        `delta_interval`: how often watchers get deltas at most, unless they ask otherwise; 0: as they come.
        """
        self._store = store
        self._memory = memory or FeedMemory()
        self._poll_interval = poll
        self._delta_interval = delta_interval.total_seconds()
        self._feeds: dict[SessionKey, Feed] = {}
        self._request = self.request_preview
        self.draining = False
        self.previews_requested: set[SessionKey] = set()
        """Sessions whose text another replica may write and a watcher wants; PreviewReceiver looks them up."""
        self.preview_requested = asyncio.Event()
        """Set while `previews_requested` has a session."""
        self.polling = True
        """No notifications arrive: every poll is made."""

    @contextlib.contextmanager
    def attach(self, key: SessionKey) -> Iterator[Feed]:
        """Keeps the session's feed for the length of a `with` block."""
        feed = self.enter(key)
        try:
            yield feed
        finally:
            self.leave(key, feed)

    def enter(self, key: SessionKey) -> Feed:
        """Returns the session's feed, which is kept until the caller calls `leave`."""
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(self._request, key, delta_interval=self._delta_interval, memory=self._memory)
        feed.watchers += 1
        return feed

    def leave(self, key: SessionKey, feed: Feed) -> None:
        """Drops the session's feed after its last watcher."""
        feed.watchers -= 1
        if not feed.watchers:
            self._feeds.pop(key, None)
            feed.rest()

    @contextlib.contextmanager
    def waiting(self, key: SessionKey) -> Iterator["TurnWait"]:
        """Caches the session's turns for a `with` block, which begins before the awaited turn is stored."""
        with self.attach(key) as feed:
            turns = feed.cache_turns()
            try:
                yield TurnWait(feed, turns)
            finally:
                feed.release_turns()

    def get(self, key: SessionKey) -> Feed | None:
        """Returns the session's feed; None if it has no watcher here."""
        return self._feeds.get(key)

    def request_preview(self, key: SessionKey) -> None:
        """Requests a lookup of the text that another replica writes in this session."""
        self.previews_requested.add(key)
        self.preview_requested.set()

    def request_previews(self) -> None:
        """Requests the text of every session that has a watcher of previews."""
        for key, feed in self._feeds.items():
            if feed.text_watchers:
                self.request_preview(key)

    def publish(self, changeset: Changeset, committed: Committed, *, sent_at: float) -> None:
        """Gives a committed changeset of this replica to its session's feed.

        `sent_at` is when the changeset was first sent, by `time.monotonic`.
        """
        feed = self._feeds.get(changeset.session_key)
        if feed is not None:
            if feed.turns is not None:
                feed.turns.add(changeset, committed, sent_at=sent_at)
            if committed.events:
                feed.sent_at = max(feed.sent_at, sent_at)
            feed.publish(committed.events, after=LogEnd(changeset.last_seq, changeset.last_changeset))

    def notify_grown(self, key: SessionKey, last_seq: int) -> None:
        """Notifies the session's watchers that another replica may have stored events up to this number."""
        feed = self._feeds.get(key)
        if feed is not None:
            feed.notify_grown(last_seq)

    def drain(self) -> None:
        """Ends every stream with a cursor, so that its client continues on another replica."""
        self.draining = True
        for feed in self._feeds.values():
            feed.notify_all()

    async def until(self, key: SessionKey, look: Callable[[], Awaitable[T | None]], *, seconds: float) -> T | None:
        """Returns the first result of `look` that is not None; calls it now and whenever the session's log has grown.

        Returns None after `seconds`, or if the replica drains.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with self.attach(key) as feed:
            while True:
                count = feed.grown.count
                result = await look()
                left = deadline - loop.time()
                if result is not None or left <= 0 or self.draining:
                    return result
                if feed.grown.count == count:
                    await wait_for_change(feed.grown, left)

    async def run(self) -> None:
        """Polls the watched sessions until it is cancelled; seldom while notifications arrive.

        Sessions without news give back what their feeds hold.
        """
        for number in itertools.count(1):
            await asyncio.sleep(self._poll_interval)
            self._memory.rest()
            if self.polling or not number % POLLS_SKIPPED:
                await self.poll()

    async def poll(self) -> None:
        """Reads the last number of every watched session once, and notifies the watchers of those that have grown."""
        watched = list(self._feeds)
        for start in range(0, len(watched), POLLED_AT_ONCE):
            await self._poll(watched[start : start + POLLED_AT_ONCE])

    async def _poll(self, keys: Sequence[SessionKey]) -> None:
        """Reads the last numbers of these sessions; a failure leaves them to the next poll."""
        try:
            known = {key: feed.end for key in keys if (feed := self._feeds.get(key)) is not None}
            ends = await self._store.ends(list(known))
            limit = asyncio.Semaphore(COMPARED_AT_ONCE)
            await asyncio.gather(*(self._compare(limit, key, end, known[key]) for key, end in ends.items()))
        except ServiceUnavailable:
            logger.warning(
                "new events of %d watched sessions not read: the database is unavailable; the next poll tries again",
                len(keys),
            )
            return
        except Exception:
            logger.exception("new events of %d watched sessions not read; the next poll tries again", len(keys))
            return

    async def _compare(self, limit: asyncio.Semaphore, key: SessionKey, end: LogEnd, known: LogEnd) -> None:
        async with limit:
            await self.compare(key, end, known=known)

    async def compare(self, key: SessionKey, end: LogEnd, *, known: LogEnd) -> None:
        """Tells the session's feed the log's end, as it was read after the feed had the end `known`.

        If the log no longer has that one, the feed forgets what it holds. Raises
        ServiceUnavailable if that seems so, and cannot be confirmed.
        """
        feed = self._feeds.get(key)
        if feed is None:
            return
        is_other = end.sequence == known.sequence and len({end.changeset_id, known.changeset_id, ""}) == 3
        if end.sequence >= known.sequence and not is_other:
            feed.notify_grown(end.sequence, end.changeset_id)
        elif not await self._store.holds(key, known) and feed.end == known:
            logger.warning(
                "the log of a session ends at %d, not at %d: the database was restored to an older state, or another "
                "session has the id now; what this replica kept of the session is dropped",
                *(end.sequence, known.sequence),
                extra={"session": key.session_id},
            )
            feed.reset(end)


class TurnWait:
    """One caller's wait for turns of a session."""

    __slots__ = ("_began_at", "_feed", "_turns")

    def __init__(self, feed: Feed, turns: TurnCache) -> None:
        """Begins the wait now."""
        self._feed = feed
        self._turns = turns
        self._began_at = time.monotonic()

    def cached_turn(self, turn_id: str) -> CachedTurn | None:
        """Returns the turn as it is now; None if it must be read from the database."""
        return self._turns.get(turn_id, since=self._began_at, until=self._feed.last_seq)
