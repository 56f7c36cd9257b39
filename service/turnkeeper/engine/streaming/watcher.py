"""One watcher's way through a session's stream: the log first, then the live tail.

Events are delivered as they are read by number; a notification only names what to read (promise I2). The watcher's
position moves as batches are built. A batch that could not be delivered is built again from the cursor that the client
holds.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Self

from turnkeeper.admission.gate import rest
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import BATCH_EVENTS, EVERYTHING, NONE, Batch, EventFilter
from turnkeeper.engine.streaming.direct_stream import DirectStream
from turnkeeper.engine.streaming.log_reads import NO_EVENTS, LogPage, SharedRead
from turnkeeper.engine.streaming.stream_end import StreamEnded
from turnkeeper.engine.streaming.turn_cache import CachedTurn
from turnkeeper.engine.streaming.wakeups import NEVER, Broadcast
from turnkeeper.errors import ServerDraining, StreamRotated
from turnkeeper.store.changeset import Head
from turnkeeper.store.expired_cursors import check_history, check_not_ahead, check_not_trimmed

if TYPE_CHECKING:
    from turnkeeper.engine.streaming.watchers import Watchers

REREAD_PAUSE = 0.05
"""Seconds before the log is read again if it lacks events that are known to exist: a new primary may lag behind."""

FINAL_KINDS = frozenset({"session_ended", "session_expired"})
"""After an event of these kinds the session has no more events."""
_LOOKED_AT = FINAL_KINDS | {"session_updated"}
"""The kinds of events after which `next` must look further."""


class Watcher:
    """One reader of one session: the caller calls `begin` once, then `next` until it returns None.

    A batch counts as delivered when the caller asks for the next one. While the caller waits for it, what needs neither
    a read nor a look at the caller's side goes to the reader through its `DirectStream`, if `write_directly` was
    called: without a task that wakes. An idle stream needs no memory besides its watcher.
    """

    __slots__ = (
        "_ahead",
        "_asked_interval",
        "_began",
        "_broadcast",
        "_caught_up",
        "_complete_at",
        "_deltas_from",
        "_direct",
        "_ends_at",
        "_feed",
        "_filter",
        "_finished",
        "_future",
        "_key",
        "_kinds",
        "_known",
        "_looked_at",
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

    def __init__(self, watchers: "Watchers", key: SessionKey, *, ends_at: float, caches_turns: bool) -> None:
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
        self._direct: DirectStream | None = None
        self._looked_at = _LOOKED_AT
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
        self._direct = None  # the timers may know the watcher for longer than its call lasts
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

    def write_directly(self, stream: DirectStream | None, *, looked_at: frozenset[str] = NONE) -> None:
        """Lets batches go to this stream while the caller of `next` waits, but for those that it must look at.

        `looked_at`: the kinds of events of these. A reader that wants deltas at an interval of its own gets them from
        `next`.
        """
        self._direct, self._looked_at = stream, _LOOKED_AT | looked_at
        if stream is not None:
            stream.wake = self.notify_deadline

    async def next(self) -> Batch | None:
        """Returns the next batch: events, the mark that the stream has caught up, or a keep-alive.

        Returns None at the session's end, or once the stream has caught up unless `EventFilter.forever`. Raises
        CursorExpired if the log was trimmed beyond the position, SessionNotFound if the session was deleted, and
        StreamEnded with the position at a planned end (StreamRotated, ServerDraining), and as `DirectStream.written`.
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
                if batch := await self._next_batch(count):
                    return batch
                now = clock()
                continue
            await self._wait(broadcast, until=min(self._sent_at + self._watchers.keep_alive, self._ends_at))
            if (now := clock()) >= self.deadline:
                self._kinds = NONE  # the events before it were counted
                return Batch(self.position)
        return None

    def on_change(self) -> None:
        """Writes what there is while `next` waits, or wakes it."""
        if self._future is None or self._future.done():
            return
        try:
            is_done = self._write_at_once()
        except Exception:  # noqa: BLE001 - `next` meets the same error, and its caller learns of it
            is_done = False
        if not is_done:
            self._future.set_result(None)

    def _write_at_once(self) -> bool:
        """Writes the next batch if there is one. Returns False if that needs `next`."""
        count, now, stream = self._broadcast.count, self._watchers.clock(), self._direct
        if count == self._complete_at:
            return True
        if stream is None or self._deltas_from or self._watchers.feeds.draining or now >= self._ends_at:
            return False
        progress = self._feed.progress if self._filter.previews else None
        if (progress is not None and progress.newest != self._progress_shown) or not stream.is_ready(now):
            return False
        batch = self._batch_in_memory()
        if batch is None or batch.kinds & self._looked_at or not self._at_end(batch):
            return False
        if batch.events and not stream.write(batch, now):
            return False
        self._complete_at = count
        if self._advance(batch, at_end=True):
            self._record_delivery(now)
            self.deadline = min(now + self._watchers.keep_alive, self._ends_at)
        return True

    def _batch_in_memory(self) -> Batch | None:
        """Returns the next batch, which another watcher may have built; None if a read of the log is needed for it.

        Only for a watcher that has caught up and has no part of a page left. Nearly always it lacks the text that was
        shown last.
        """
        feed, position, event_filter = self._feed, self.position, self._filter
        session_id, builder = self._key.session_id, self._watchers.builder
        batch = feed.shared_batch(position, event_filter)
        if batch is not None:
            return batch
        if event_filter.previews:
            batch = builder.shown_last(session_id, position, feed=feed, event_filter=event_filter)
        if batch is None:
            held = feed.since(position.sequence) if feed.continues(position) else None
            preview = feed.preview if event_filter.previews else None
            if held is None or (preview is not None and preview.must_check(position.sequence)):
                return None
            batch = builder.build(held, session_id, position, feed=feed, event_filter=event_filter)
        if batch.events:
            feed.share_batch(position, event_filter, batch)
        return batch

    def _next_progress(self) -> Batch | None:
        """Returns how far tools are, for a watcher that has all else; None if it was shown that."""
        batch, self._progress_shown = self._watchers.builder.progress(
            self._key.session_id, self.position, self._progress_shown, feed=self._feed, event_filter=self._filter
        )
        return batch if batch.events else None

    async def _next_batch(self, count: int) -> Batch | None:
        """Returns what there is to deliver at this change of the feed, if there is something."""
        is_near = self._caught_up and self._page is None
        batch = (self._batch_in_memory() if is_near else None) or await self._build()
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
        """Waits for the next change, at most until this time of the loop's clock; raises as `DirectStream.written`.

        What goes directly to the stream does not end the wait.
        """
        rest()
        stream, count = None if self._deltas_from else self._direct, broadcast.count
        if stream is None:
            self._future = broadcast.subscribe()
        else:
            self._future = asyncio.get_running_loop().create_future()
            broadcast.add(self)
        self._watchers.timers.set(self, until)
        try:
            await self._future
        finally:
            if stream is not None:
                broadcast.remove(self)
            elif broadcast.count == count:  # a change has forgotten the future itself
                broadcast.unsubscribe(self._future)
            self._future = None
        if stream is not None:
            await stream.written()

    async def _hold_deltas(self) -> None:
        """Waits while there is nothing to deliver but deltas, for which the reader wants to wait longer."""
        clock = self._watchers.clock
        while clock() < self._deltas_from and self._page is None and not self._watchers.feeds.draining:
            if not self.position.live or self.position.sequence != self._feed.last_seq:
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

    async def _build(self) -> Batch:
        """Builds the next batch, or returns the one that another watcher of the same page has built."""
        feed, position, event_filter = self._feed, self.position, self._filter
        page = await self._next_page(position.sequence)
        built = page.batches.get((position, event_filter)) if page.batches and feed.preview is None else None
        if built is not None:
            self._keep_page(page, built)
            return built
        if event_filter.previews:
            await self._watchers.reader.check_preview(self._key, feed, position.sequence)
        batch = self._watchers.builder.build(
            page.after(position.sequence), self._key.session_id, position, feed=feed, event_filter=event_filter
        )
        if page.batches is not None and batch.position.sequence < feed.last_seq:
            page.batches[position, event_filter] = batch
        self._keep_page(page, batch)
        return batch

    def _keep_page(self, page: LogPage, batch: Batch) -> None:
        """Keeps the page for the next batch if it has events that did not fit into this one."""
        self._page = page if batch.full and batch.position.sequence < page.last else None
        if page.last < self._feed.last_seq and page.wants_next(batch.position.sequence):
            self._watchers.reader.read_ahead(self._key, self._feed, page)
        self._ahead = page.ahead

    async def _next_page(self, after: int) -> LogPage:
        """Returns the last page if events of it are left, else the feed's events, else a page read from the log."""
        if self._page is not None:
            return self._page
        held = self._feed.since(after) if self._feed.continues(self.position) else None
        if held is not None:
            return LogPage(after, held) if held else NO_EVENTS
        ahead, self._ahead = self._ahead, None
        page = await self._watchers.reader.next_page(
            self._key, self._feed, self.position, ahead=ahead, limit=self._page_limit, head=self._watchers.head
        )
        self._page_limit = page.next_limit
        return page

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
