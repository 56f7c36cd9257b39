"""One reader's way through a session's stream: the log first, then the live tail.

The read by number is the truth and a notification only a hint (promise I2). The reader's place moves as batches are
made; a batch that could not be delivered is made again from the cursor that the client holds.
"""

import asyncio
import random
import time
from dataclasses import replace
from typing import Self

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import BATCH_EVENTS, EVERYTHING, NONE, Batch, EventFilter
from turnkeeper.engine.streaming.batch_builder import BatchBuilder, PreviewCodec
from turnkeeper.engine.streaming.feed import RESETS, Feeds
from turnkeeper.engine.streaming.log_reads import LogPage, SharedRead
from turnkeeper.engine.streaming.turn_cache import CachedTurn
from turnkeeper.engine.streaming.wakeups import NEVER, DeadlineTimers
from turnkeeper.errors import InvalidRequest, ServerDraining, SessionNotFound, StreamRotated
from turnkeeper.store.changeset import Head, _expired, check_kept
from turnkeeper.store.contract import SessionLog
from turnkeeper.telemetry.metrics import Metrics

BEHIND = 0.05
"""Seconds until the log is read again when it does not show yet what was heard of: a new primary may lag behind."""
APPEARS = 1.0
"""Seconds that a place beyond the log's end has to appear."""
PAGE_LEAST, PAGE_MOST, PAGE_BYTES = 8, 1024, 256 * 1024
"""Events of a page of the log: as many as should have so many bytes, after what the page before had."""

LAST = frozenset({"session_ended", "session_expired"})
"""After these nothing comes any more."""


class Watchers:
    """Makes readings: one is one stream."""

    def __init__(  # noqa: PLR0913 - the parts and times it is made of
        self,
        store: SessionLog,
        feeds: Feeds,
        codec: PreviewCodec,
        *,
        metrics: Metrics,
        heartbeat: float,
        rotation: float,
        rng: random.Random,
    ) -> None:
        """`heartbeat` and `rotation` in seconds; a stream's age at its planned end is `rotation` ± 10 %."""
        self.store = store
        self.feeds = feeds
        self.collector = BatchBuilder(codec)
        self.metrics = metrics
        self.heartbeat = heartbeat
        self.alarms = DeadlineTimers()
        self._rotation = rotation
        self._rng = rng

    def open(self, key: SessionKey, *, knows_turns: bool = False) -> "Watcher":
        """A reading of this session, to be closed by its `with` block; from here on it misses nothing.

        `knows_turns`: it can tell what became of turns that run here.
        """
        ends_at = asyncio.get_running_loop().time() + self._rotation * self._rng.uniform(0.9, 1.1)
        return Watcher(self, key, ends_at=ends_at, knows_turns=knows_turns)

    async def head(self, key: SessionKey) -> Head:
        """Raises SessionNotFound."""
        found = await self.store.session(key)
        if found is None:
            raise SessionNotFound(session_id=key.session_id)
        return found[1]


class Watcher:
    """One reader's way: `begin` once, then `next` again and again.

    A batch counts as delivered when the next one is asked for. While it waits for one, it is all that a stream is.
    """

    __slots__ = (
        "_begun",
        "_by",
        "_ends_at",
        "_feed",
        "_future",
        "_key",
        "_kinds",
        "_limit",
        "_opened_at",
        "_over",
        "_page",
        "_sent_at",
        "_signal",
        "_told",
        "_turns",
        "_wanted",
        "due",
        "listed",
        "place",
    )

    def __init__(self, by: Watchers, key: SessionKey, *, ends_at: float, knows_turns: bool) -> None:
        self._by = by
        self._key = key
        self._ends_at = ends_at
        self._opened_at = time.monotonic()
        self._feed = by.feeds.enter(key)
        self._signal = self._feed.grown
        self._turns = self._feed.know_turns() if knows_turns else None
        self._wanted = EVERYTHING
        self._limit = BATCH_EVENTS
        self._page: LogPage | None = None
        self._kinds = NONE
        self._told = self._begun = self._over = False
        self._sent_at = 0.0
        self._future: asyncio.Future[None] | None = None
        self.due = self.listed = NEVER
        self.place = StreamPosition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.due = NEVER
        self._feed.text_watchers -= self._wanted.previews
        if self._turns is not None:
            self._feed.forget_turns()
        self._by.feeds.leave(self._key, self._feed)

    def known(self, turn_id: str) -> CachedTurn | None:
        """A turn as it is, when that is known without asking. The log may have shown more than was heard of."""
        if self._turns is None:
            return None
        return self._turns.get(turn_id, since=self._opened_at, until=max(self._feed.last_seq, self.place.sequence))

    async def begin(self, start: StreamPosition, wanted: EventFilter, *, head: Head | None = None) -> None:
        """Where it begins, and what it has. `head` as it was read after the reading was opened, if it was.

        Raises CursorExpired below what is kept, InvalidRequest for a place beyond the log, SessionNotFound.
        """
        self.place, self._wanted = start, self._feed.same(wanted)
        self._sent_at = asyncio.get_running_loop().time()
        if wanted.previews:
            self._signal = self._feed.changed
            self._feed.show()
        if head is not None or not self._reaches(start):
            await self._check_start(start, head)

    async def next(self) -> Batch | None:
        """None at the session's end, or once caught up unless `Wanted.forever`.

        Raises CursorExpired below what is kept, SessionNotFound once the session is deleted, and, with the place in
        `Ended.place`, the planned ends StreamRotated and ServerDraining.
        """
        clock, signal = asyncio.get_running_loop().time, self._signal
        self._delivered(clock())
        while not self._over:
            if self._check_end(clock()):
                await self._by.head(self._key)
            seen = signal.fired
            batch = self._shared() or await self._collect()
            if self._take(batch):
                return batch
            if not self._at_end(batch):
                if not batch.kinds:
                    await asyncio.sleep(BEHIND)
                continue
            until = min(self._sent_at + self._by.heartbeat, self._ends_at)
            if signal.fired == seen:
                self._future = signal.next()
                self._by.alarms.set(self, until)
                del batch  # nothing is kept while there is nothing to say
                try:
                    await self._future
                finally:
                    signal.leave(self._future)
                    self._future = None
            if clock() >= until:
                return Batch(self.place)
        return None

    def ring(self) -> None:
        """It is time to say that there is nothing to say."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def _take(self, batch: Batch) -> bool:
        """Go on to where the batch ends; whether there is something in it to be said."""
        at_end = self._at_end(batch)
        if at_end and not self._told:
            self._told = batch.caught_up = True
            batch.place = replace(batch.place, live=True)
        self._begun, self.place, self._kinds = True, batch.place, batch.kinds
        last = bool(batch.kinds & LAST)
        self._over = last or (at_end and not self._wanted.forever)
        return bool(batch.events) or batch.caught_up or last

    def _at_end(self, batch: Batch) -> bool:
        return batch.place.sequence >= self._feed.last_seq and not batch.full

    def _shared(self) -> Batch | None:
        return self._feed.shared(self.place, self._wanted) if self._told and self._page is None else None

    async def _collect(self) -> Batch:
        feed, place, wanted = self._feed, self.place, self._wanted
        page, held = await self._next_page(place.sequence)
        made = page.made.get((place, wanted)) if page.made and feed.preview is None else None
        if made is not None:
            self._keep(page, made)
            return made
        looks = self._must_look_behind(place.sequence)
        if looks:
            await self._look_behind(place.sequence)
        batch = self._by.collector.collect(
            page.beyond(place.sequence), self._key.session_id, place, feed=feed, wanted=wanted
        )
        if page.made is not None and batch.place.sequence < feed.last_seq:
            page.made[place, wanted] = batch
        self._keep(page, batch)
        if self._told and held and not looks and batch.events:
            feed.share(place, wanted, batch)
        return batch

    def _keep(self, page: LogPage, batch: Batch) -> None:
        self._page = page if batch.full and batch.place.sequence < page.last else None

    async def _next_page(self, after: int) -> tuple[LogPage, bool]:
        """What a batch left over, or what the ring has, or of the log. True: it was here."""
        if self._page is not None:
            return self._page, True
        held = self._feed.since(after)
        return (LogPage(after, held), True) if held is not None else (await self._read(after), False)

    def _must_look_behind(self, sequence: int) -> bool:
        """What its reader was given on another replica may have ended the text that is written here."""
        preview = self._feed.preview
        if preview is None or not self._wanted.previews:
            return False
        return sequence > preview.known and preview.ours and not preview.over

    async def _look_behind(self, sequence: int) -> None:
        preview = self._feed.preview
        if preview is None:
            return
        found = await self._by.store.events(
            self._key, after=preview.known, limit=1, kinds=RESETS, turn_id=preview.turn_id, until=sequence
        )
        preview.over |= bool(found)
        preview.known = max(preview.known, sequence)

    def _reaches(self, start: StreamPosition) -> bool:
        """A step of ours was stored since this was opened, and the ring has all from the start up to it."""
        feed = self._feed
        return (
            feed.sent_at >= self._opened_at
            and start.sequence <= feed.last_seq
            and feed.since(start.sequence) is not None
        )

    async def _check_start(self, start: StreamPosition, head: Head | None) -> None:
        """A new primary may not show yet what the old one had shown: a place beyond the log has a moment to appear."""
        clock = asyncio.get_running_loop().time
        until = clock() + APPEARS
        head = head or await self._by.head(self._key)
        while start.sequence > head.last_seq and clock() < until:
            await asyncio.sleep(BEHIND)
            head = await self._by.head(self._key)
        last_seq = head.last_seq
        check_kept(start.sequence, head)
        if start.sequence > last_seq:
            raise InvalidRequest(
                f"There is no event {start.sequence} yet; the last one is {last_seq}.",
                session_id=self._key.session_id,
                fields={"after": f"is beyond the last event, {last_seq}"},
            )
        self._feed.heard(last_seq)

    def _delivered(self, now: float) -> None:
        if not self._begun:
            return
        self._sent_at = now
        if self.place.live and self._kinds and (lag := self._feed.lag(self.place.sequence)) is not None:
            self._by.metrics.delivery_lag(lag)

    def _check_end(self, now: float) -> bool:
        """Raises an end that was planned, once the first batch was delivered. True: the session may be deleted."""
        if not self._begun:
            return False
        if self._by.feeds.draining:
            raise StreamEnded(ServerDraining(session_id=self._key.session_id), self.place)
        if now >= self._ends_at:
            raise StreamEnded(StreamRotated(session_id=self._key.session_id), self.place)
        return "session_updated" in self._kinds

    async def _read(self, after: int) -> LogPage:
        """The next events by a page of the log."""
        self._by.metrics.replay("LOG")
        page = await self._land(after)
        self._limit = max(PAGE_LEAST, min(PAGE_MOST, PAGE_BYTES * len(page.events) // (page.size + 1)))
        if not page.events:
            # Not the next: the log was trimmed under this stream, or is broken. Nothing: or this primary lags behind.
            check_kept(after, await self._by.head(self._key))
            if page.found:
                raise _expired(self._key.session_id, oldest=page.found[0].sequence, head=self._feed.last_seq)
        return page

    async def _land(self, after: int) -> LogPage:
        """With all who ask for the same page while it is being read."""
        feed, limit = self._feed, self._limit
        if feed.flight is not None and feed.flight.serves(after, limit, heard=feed.last_seq):
            page = await feed.flight.wait()
            if page is not None:
                return page
        flight = feed.flight = SharedRead(after, limit, heard=feed.last_seq)
        try:
            return await flight.read(lambda: self._by.store.events(self._key, after=after, limit=limit))
        finally:
            if feed.flight is flight:
                feed.flight = None


class StreamEnded(Exception):
    """A planned end of a stream, with the place where the client goes on."""

    def __init__(self, error: StreamRotated | ServerDraining, place: StreamPosition) -> None:
        super().__init__(error.message)
        self.error = error
        self.place = place
