"""One watcher's way through a session's stream: the log first, then the live tail.

Events are delivered as they are read by number; a notification only names what to read (promise I2). The watcher's
position moves as batches are built. A batch that could not be delivered is built again from the cursor that the client
holds.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Self

from turnkeeper.admission.gate import rest
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import BATCH_EVENTS, EVERYTHING, NONE, Batch, EventFilter
from turnkeeper.engine.streaming.batch_builder import BatchBuilder, PreviewCodec
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.log_reader import LogReader
from turnkeeper.engine.streaming.log_reads import NO_EVENTS, LogPage, SharedRead
from turnkeeper.engine.streaming.preview import TEXT_ENDING_KINDS
from turnkeeper.engine.streaming.stream_end import StreamEnded, StreamTimes
from turnkeeper.engine.streaming.turn_cache import CachedTurn
from turnkeeper.engine.streaming.wakeups import NEVER, Broadcast, DeadlineTimers
from turnkeeper.errors import ServerDraining, SessionNotFound, StreamRotated
from turnkeeper.store.changeset import Head
from turnkeeper.store.contract import SessionLog
from turnkeeper.store.expired_cursors import check_history, check_not_ahead, check_not_trimmed
from turnkeeper.telemetry.metrics import Metrics

REREAD_PAUSE = 0.05
"""Seconds before the log is read again if it lacks events that are known to exist: a new primary may lag behind."""

FINAL_KINDS = frozenset({"session_ended", "session_expired"})
"""After an event of these kinds the session has no more events."""


class Watchers:
    """Opens watchers, one for each stream, and holds what they share."""

    def __init__(
        self,
        store: SessionLog,
        feeds: Feeds,
        codec: PreviewCodec,
        *,
        metrics: Metrics,
        times: StreamTimes,
        rng: random.Random,
    ) -> None:
        """`rng` spreads the ends of streams."""
        self.store = store
        self.feeds = feeds
        self.reader = LogReader(store, metrics)
        self.builder = BatchBuilder(codec)
        self.metrics = metrics
        self.keep_alive = times.keep_alive
        self.timers = DeadlineTimers()
        self.clock: Callable[[], float] = time.monotonic
        """The event loop's, once a watcher was opened: to ask for the loop costs a system call."""
        self._times = times
        self._rng = rng

    def open(self, key: SessionKey, *, caches_turns: bool = False) -> "Watcher":
        """Returns a watcher of this session. It misses no event from now on; the caller closes it by a `with` block.

        `caches_turns`: it can return turns of the session without a read.
        """
        self.clock = asyncio.get_running_loop().time
        ends_at = self._times.planned_end(self.clock(), self._rng)
        return Watcher(self, key, ends_at=ends_at, caches_turns=caches_turns)

    async def head(self, key: SessionKey) -> Head:
        """Returns the session's head. Raises SessionNotFound if there is certainly no such session."""
        stored = await self.store.session(key)
        if stored is None:
            async with self.store.linearizable():
                stored = await self.store.session(key)
        if stored is None:
            raise SessionNotFound(session_id=key.session_id)
        return stored[1]


class Watcher:
    """One reader of one session: the caller calls `begin` once, then `next` until it returns None.

    A batch counts as delivered when the caller asks for the next one. An idle stream needs no memory
    besides its watcher.
    """

    __slots__ = (
        "_ahead",
        "_asked_interval",
        "_began",
        "_broadcast",
        "_caught_up",
        "_complete_at",
        "_deltas_from",
        "_ends_at",
        "_feed",
        "_filter",
        "_finished",
        "_future",
        "_key",
        "_kinds",
        "_known",
        "_opened_at",
        "_page",
        "_page_limit",
        "_progress_shown",
        "_sent_at",
        "_turns",
        "_watchers",
        "deadline",
        "listed",
        "position",
        "resume_at",
    )

    def __init__(self, watchers: Watchers, key: SessionKey, *, ends_at: float, caches_turns: bool) -> None:
        """Attaches to the session's feed. `ends_at` is the stream's planned end, by the loop's clock."""
        self._watchers = watchers
        self._key = key
        self._ends_at = ends_at
        self._opened_at = time.monotonic()
        self._feed = watchers.feeds.enter(key)
        self._known = self._feed.end
        self._broadcast = self._feed.grown
        self._turns = self._feed.cache_turns() if caches_turns else None
        self._filter = EVERYTHING
        self._page_limit = BATCH_EVENTS
        self._page: LogPage | None = None
        self._ahead: SharedRead | None = None
        self._kinds = NONE
        self._caught_up = self._began = self._finished = False
        self._asked_interval: float | None = None
        self._progress_shown = 0
        self._complete_at = -1
        """The number of the change after which the last batch had all there was; -1 if there may be more."""
        self._sent_at = self._deltas_from = 0.0
        self._future: asyncio.Future[None] | None = None
        self.deadline = self.listed = NEVER
        self.position = StreamPosition()
        self.resume_at: StreamPosition | None = None
        """Where the reader resumes if the stream ends now: after the last delivered batch. None before `begin`."""

    def __enter__(self) -> Self:
        """Returns the watcher itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the session's feed."""
        self.deadline = NEVER
        if self._filter.previews:
            self._feed.remove_text_watcher(interval=self._asked_interval)
        if self._turns is not None:
            self._feed.release_turns()
        self._watchers.feeds.leave(self._key, self._feed)

    def cached_turn(self, turn_id: str) -> CachedTurn | None:
        """Returns the turn as it is now; None if it must be read from the database.

        The log may have shown this watcher a newer event than any that the feed knows of.
        """
        if self._turns is None:
            return None
        return self._turns.get(turn_id, since=self._opened_at, until=max(self._feed.last_seq, self.position.sequence))

    async def begin(
        self,
        start: StreamPosition,
        event_filter: EventFilter,
        *,
        head: Head | None = None,
        delta_interval: float | None = None,
    ) -> None:
        """Sets where the stream begins and which events it has. `head`: the session's, if read after `Watchers.open`.

        `delta_interval` is how often deltas come at most, in seconds; None: as often as the replica shows them.
        Raises CursorExpired if the log was trimmed beyond `start` or, as far as was read, ends before it, and
        SessionNotFound if there is no such session.
        """
        self.position, self._filter = start, self._feed.same_filter(event_filter)
        self.resume_at = start
        self._sent_at = self._watchers.clock()
        if event_filter.previews:
            self._broadcast = self._feed.changed
            self._asked_interval = delta_interval
            self._feed.add_text_watcher(interval=delta_interval)
        if head is not None or not self._feed.reaches(start.sequence, since=self._opened_at):
            await self._check_start(start, head)

    async def next(self) -> Batch | None:
        """Returns the next batch: events, the mark that the stream has caught up, or a keep-alive.

        Returns None at the session's end, or once the stream has caught up unless `EventFilter.forever`. Raises
        CursorExpired if the log was trimmed beyond the position, SessionNotFound if the session was deleted, and
        StreamEnded with the position at a planned end (StreamRotated, ServerDraining).
        """
        clock, broadcast = self._watchers.clock, self._broadcast
        now = clock()
        if self._began:
            self._record_delivery(now)
        while not self._finished:
            if self._check_planned_end(now):
                self._kinds = NONE  # one look for each change of the session
                await self._watchers.head(self._key)  # raises SessionNotFound if the session was deleted
            if self._deltas_from:
                await self._hold_deltas()
            count = broadcast.count
            if count != self._complete_at:
                if batch := self._next_text(count) or await self._next_batch(count):
                    return batch
                now = clock()
                continue
            until = min(self._sent_at + self._watchers.keep_alive, self._ends_at)
            await self._wait(broadcast, until=until)
            if (now := clock()) >= until:
                return Batch(self.position)
        return None

    def _next_text(self, count: int) -> Batch | None:
        """Returns the text that was shown last if the watcher lacks that alone, as nearly always; None otherwise."""
        if self._complete_at < 0 or not self._filter.previews:
            return None
        feed, position, event_filter = self._feed, self.position, self._filter
        batch = feed.shared_batch(position, event_filter)
        if batch is None:
            batch = self._watchers.builder.shown_last(
                self._key.session_id, position, feed=feed, event_filter=event_filter
            )
            if batch is None:
                return None
            feed.share_batch(position, event_filter, batch)
        elif batch.kinds or batch.full:
            return None
        self._complete_at = count
        self._advance(batch, at_end=True)
        return batch

    def _next_progress(self) -> Batch | None:
        """Returns how far tools are, for a watcher that has all else; None if it was shown that."""
        batch, self._progress_shown = self._watchers.builder.progress(
            self._key.session_id, self.position, self._progress_shown, feed=self._feed, event_filter=self._filter
        )
        return batch if batch.events else None

    async def _next_batch(self, count: int) -> Batch | None:
        """Returns what there is to deliver at this change of the feed, if there is something."""
        batch = self._shared_batch() or await self._build()
        at_end = self._at_end(batch)
        progress = self._feed.progress if self._filter.previews else None
        has_all = progress is None or progress.newest == self._progress_shown
        is_complete = at_end and self._caught_up and has_all  # deltas begin after the catching up
        self._complete_at = count if is_complete else -1
        if self._advance(batch, at_end=at_end):
            return batch
        if at_end and not has_all:
            return self._next_progress()
        if not at_end and not batch.kinds:
            await asyncio.sleep(REREAD_PAUSE)
        return None

    def notify_deadline(self) -> None:
        """Wakes the watcher so that it returns a keep-alive."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def _wait(self, broadcast: Broadcast, *, until: float) -> None:
        """Waits for the next change, at most until this time of the loop's clock."""
        rest()
        count = broadcast.count
        self._future = broadcast.subscribe()
        self._watchers.timers.set(self, until)
        try:
            await self._future
        finally:
            if broadcast.count == count:  # a change has forgotten the future itself
                broadcast.unsubscribe(self._future)
            self._future = None

    async def _hold_deltas(self) -> None:
        """Waits while there is nothing to deliver but deltas, for which the reader wants to wait longer."""
        clock = self._watchers.clock
        while clock() < self._deltas_from and self._page is None and not self._watchers.feeds.draining:
            if not self.position.live or self.position.sequence < self._feed.last_seq:
                return
            await self._wait(self._feed.grown, until=self._deltas_from)

    def _advance(self, batch: Batch, *, at_end: bool) -> bool:
        """Moves the position to the batch's end. Returns True if the batch has something to deliver."""
        if at_end and not self._caught_up:
            self._caught_up = batch.caught_up = True
            batch.position = batch.position._replace(live=True)
        self._began, self.position, self._kinds = True, batch.position, batch.kinds
        if batch.preview is not None and self._asked_interval:
            self._deltas_from = self._watchers.clock() + min(self._asked_interval, self._watchers.keep_alive)
        final = bool(batch.kinds & FINAL_KINDS)
        self._finished = final or (at_end and not self._filter.forever)
        return bool(batch.events) or batch.caught_up or final

    def _at_end(self, batch: Batch) -> bool:
        """Returns True if the batch reaches the last event that the feed knows of."""
        return batch.position.sequence >= self._feed.last_seq and not batch.full

    def _shared_batch(self) -> Batch | None:
        """Returns another watcher's batch for this position; None if there is none, or a part of a page is left."""
        if not self._caught_up or self._page is not None:
            return None
        return self._feed.shared_batch(self.position, self._filter)

    async def _build(self) -> Batch:
        """Builds the next batch, or returns the one that another watcher of the same page has built."""
        feed, position, event_filter = self._feed, self.position, self._filter
        page, in_memory = await self._next_page(position.sequence)
        built = page.batches.get((position, event_filter)) if page.batches and feed.preview is None else None
        if built is not None:
            self._keep_page(page, built)
            return built
        preview = feed.preview if event_filter.previews else None
        checks = preview is not None and preview.must_check(position.sequence)
        if checks:
            await self._check_preview(position.sequence)
        batch = self._watchers.builder.build(
            page.after(position.sequence), self._key.session_id, position, feed=feed, event_filter=event_filter
        )
        if page.batches is not None and batch.position.sequence < feed.last_seq:
            page.batches[position, event_filter] = batch
        self._keep_page(page, batch)
        if self._caught_up and in_memory and not checks and batch.events:
            feed.share_batch(position, event_filter, batch)
        return batch

    def _keep_page(self, page: LogPage, batch: Batch) -> None:
        """Keeps the page for the next batch if it has events that did not fit into this one."""
        self._page = page if batch.full and batch.position.sequence < page.last else None
        if page.last < self._feed.last_seq and page.wants_next(batch.position.sequence):
            self._watchers.reader.read_ahead(self._key, self._feed, page)
        self._ahead = page.ahead

    async def _next_page(self, after: int) -> tuple[LogPage, bool]:
        """Returns the last page if events of it are left, else the feed's events, else a page read from the log.

        The second value is True if the page was in memory.
        """
        if self._page is not None:
            return self._page, True
        held = self._feed.since(after) if self._feed.continues(self.position) else None
        if held is not None:
            return (LogPage(after, held) if held else NO_EVENTS), True
        ahead, self._ahead = self._ahead, None
        page = await self._watchers.reader.next_page(
            self._key, self._feed, self.position, ahead=ahead, limit=self._page_limit, head=self._watchers.head
        )
        self._page_limit = page.next_limit
        return page, False

    async def _check_preview(self, sequence: int) -> None:
        """Reads from the log whether an event up to this number ended the preview."""
        preview = self._feed.preview
        if preview is None:
            return
        events = await self._watchers.store.events(
            self._key,
            after=preview.checked_through,
            limit=1,
            kinds=TEXT_ENDING_KINDS,
            turn_id=preview.turn_id,
            until=sequence,
        )
        preview.ended |= bool(events)
        preview.checked_through = max(preview.checked_through, sequence)

    async def _check_start(self, start: StreamPosition, head: Head | None) -> None:
        """Raises CursorExpired if the log does not have the events after `start`."""
        head = head or await self._watchers.head(self._key)
        check_not_trimmed(start.sequence, head)
        check_not_ahead(start.sequence, head)
        check_history(start, head)
        await self._watchers.feeds.compare(self._key, head.end, known=self._known)

    def _record_delivery(self, now: float) -> None:
        """Records that the last batch was delivered, and how late it was."""
        self._sent_at, self.resume_at = now, self.position
        is_counted = self._watchers.metrics.counting and self._kinds and self.position.live
        if is_counted and (lag := self._feed.lag(self.position.sequence)) is not None:
            self._watchers.metrics.delivery_lag(lag)

    def _check_planned_end(self, now: float) -> bool:
        """Raises StreamEnded at a planned end, after the first batch. Returns True if the session may be deleted."""
        if not self._began:
            return False
        if self._watchers.feeds.draining:
            raise StreamEnded(ServerDraining(session_id=self._key.session_id), self.position)
        if now >= self._ends_at:
            raise StreamEnded(StreamRotated(session_id=self._key.session_id), self.position)
        return "session_updated" in self._kinds
