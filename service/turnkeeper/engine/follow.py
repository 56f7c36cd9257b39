"""One reader's way through a session's stream: the log first, then the live tail.

The read by number is the truth and a notification only a hint (promise I2). The reader's place moves as batches are
made; a batch that could not be delivered is made again from the cursor that the client holds.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Protocol

from turnkeeper.domain.cursor import Place
from turnkeeper.engine.feed import RESETS, Feed, Feeds, Key
from turnkeeper.engine.preview import Preview, piece_of
from turnkeeper.errors import CursorExpired, InvalidRequest, ServerDraining, SessionNotFound, StreamRotated
from turnkeeper.store.contract import Store
from turnkeeper.store.step import Head, StoredEvent
from turnkeeper.telemetry.metrics import Metrics

BEHIND = 0.05
"""Seconds until the log is read again when it does not show yet what was heard of: a new primary may lag behind."""
APPEARS = 1.0
"""Seconds that a place beyond the log's end has to appear."""
BATCH_EVENTS = 64
BATCH_BYTES = 64 * 1024
DELTA_BYTES = 16 * 1024

_OF_THE_SPEAKER = RESETS - {"turn_cancelled"}
"""Only the turn that speaks has these; a queued turn can be cancelled beside it, and its text goes on."""

LAST = frozenset({"session_ended", "session_expired"})
"""After these nothing comes any more."""


class PreviewCodec(Protocol):
    """How deltas become bytes, and what a stored message's text is."""

    def delta(self, session_id: str, *, turn_id: str, message_id: str, attempt: int, offset: int, text: bytes) -> bytes:
        """The wire form of a `content_delta` event."""
        ...

    def message_text(self, payload: bytes) -> tuple[str, int, bytes]:
        """Of a stored `message_completed`: message id, attempt, text in UTF-8."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a stream has. Empty `kinds` and `turn_id` are all. `forever` False: it ends once caught up."""

    kinds: frozenset[str] = frozenset()
    turn_id: str = ""
    previews: bool = False
    forever: bool = True

    def has(self, event: StoredEvent) -> bool:
        return (not self.kinds or event.kind in self.kinds) and self.follows(event.turn_id)

    def follows(self, turn_id: str) -> bool:
        return not self.turn_id or turn_id == self.turn_id


@dataclass(slots=True)
class Batch:
    """Goes into one response. Without events it is a heartbeat."""

    events: list[bytes] = field(default_factory=list)
    size: int = 0
    place: Place = field(default_factory=Place)
    caught_up: bool = False
    kinds: set[str] = field(default_factory=set)
    """The kinds of the durable events that were passed, wanted or not."""
    full: bool = False
    """Something did not fit; it comes with the next batch."""

    def add(self, payload: bytes) -> bool:
        """False when it does not fit. A batch has room for one event, however large."""
        size = self.size + len(payload)
        if self.events and (len(self.events) >= BATCH_EVENTS or size > BATCH_BYTES):
            self.full = True
            return False
        self.events.append(payload)
        self.size = size
        return True


class Follower:
    """Makes followers: one call of `follow` is one stream."""

    def __init__(  # noqa: PLR0913 - the parts and times it is made of
        self,
        store: Store,
        feeds: Feeds,
        codec: PreviewCodec,
        *,
        metrics: Metrics,
        heartbeat: float,
        rotation: float,
        rng: random.Random,
    ) -> None:
        """`heartbeat` and `rotation` in seconds; a stream's age at its planned end is `rotation` ± 10 %."""
        self._store = store
        self._feeds = feeds
        self._codec = codec
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._rotation = rotation
        self._rng = rng

    async def follow(self, key: Key, start: Place, wanted: Wanted) -> AsyncGenerator[Batch]:
        """Batches from `start` on; ends by itself at the session's end, or caught up unless `wanted.forever`.

        Raises CursorExpired below what is kept, InvalidRequest for a place beyond the log, SessionNotFound once the
        session is deleted, and, with the place in `Ended.place`, the planned ends StreamRotated and ServerDraining.
        """
        clock = asyncio.get_running_loop().time
        ends_at = clock() + self._rotation * self._rng.uniform(0.9, 1.1)
        with self._feeds.attach(key) as feed, feed.showing(wanted.previews):
            await self._check_start(key, start, feed)
            place, told, sent_at = start, False, clock()
            page: list[StoredEvent] = []
            while True:
                changed = feed.changed() if wanted.previews else feed.grown()
                page = page or await self._durable(key, feed, place.sequence)
                await self._look_behind(key, feed, place.sequence, wanted)
                batch = self._collect(page, key[1], place, feed, wanted)
                page = [event for event in page if event.sequence > batch.place.sequence]
                at_end = batch.place.sequence >= feed.last_seq and not batch.full
                if at_end and not told:
                    told = batch.caught_up = True
                    batch.place = replace(batch.place, live=True)
                place, over = batch.place, bool(batch.kinds & LAST)
                spoke = bool(batch.events) or batch.caught_up or over
                if spoke:
                    yield batch
                    sent_at = clock()
                self._delivered(feed, batch)
                if over or (at_end and not wanted.forever):
                    return
                await self._check_end(key, batch, ends_at)
                if not (spoke or at_end or batch.kinds):
                    await asyncio.sleep(BEHIND)
                if at_end and not spoke and await _silent(changed, until=min(sent_at + self._heartbeat, ends_at)):
                    yield Batch(place=place)
                    sent_at = clock()

    async def _look_behind(self, key: Key, feed: Feed, sequence: int, wanted: Wanted) -> None:
        """What its reader was given on another replica may have ended the text that is written here."""
        preview = feed.preview
        if not wanted.previews or preview is None or not preview.ours or preview.over or sequence <= preview.known:
            return
        found = await self._store.events(
            *key, after=preview.known, limit=1, kinds=RESETS, turn_id=preview.turn_id, until=sequence
        )
        preview.over |= bool(found)
        preview.known = max(preview.known, sequence)

    async def _check_start(self, key: Key, start: Place, feed: Feed) -> None:
        """A new primary may not show yet what the old one had shown: a place beyond the log has a moment to appear."""
        clock = asyncio.get_running_loop().time
        until = clock() + APPEARS
        head = await self._head(key)
        while start.sequence > head.last_seq and clock() < until:
            await asyncio.sleep(BEHIND)
            head = await self._head(key)
        last_seq = head.last_seq
        check_kept(start.sequence, head)
        if start.sequence > last_seq:
            raise InvalidRequest(
                f"There is no event {start.sequence} yet; the last one is {last_seq}.",
                session_id=key[1],
                fields={"after": f"is beyond the last event, {last_seq}"},
            )
        feed.heard(last_seq)

    def _delivered(self, feed: Feed, batch: Batch) -> None:
        place = batch.place
        if place.live and batch.kinds and (lag := feed.lag(place.sequence)) is not None:
            self._metrics.delivery_lag(lag)

    async def _check_end(self, key: Key, batch: Batch, ends_at: float) -> None:
        """Raises what ends the stream here: the session was deleted, or an end that was planned."""
        if "session_updated" in batch.kinds:
            await self._head(key)
        if self._feeds.draining:
            raise Ended(ServerDraining(session_id=key[1]), batch.place)
        if asyncio.get_running_loop().time() >= ends_at:
            raise Ended(StreamRotated(session_id=key[1]), batch.place)

    def _collect(self, page: list[StoredEvent], session_id: str, place: Place, feed: Feed, wanted: Wanted) -> Batch:
        batch = Batch(place=place)
        for event in page:
            if not self._pass(batch, event, session_id, feed, wanted):
                return batch
        if batch.place.live and wanted.previews and batch.place.sequence >= feed.last_seq:
            self._preview(batch, session_id, feed, wanted)
        return batch

    async def _durable(self, key: Key, feed: Feed, after: int) -> list[StoredEvent]:
        """The next events, from the ring or by a page of the log; what a batch leaves over is kept for the next."""
        held = feed.since(after)
        if held is not None:
            return held
        self._metrics.replay("LOG")
        read = await self._store.events(*key, after=after, limit=BATCH_EVENTS)
        unbroken = [event for number, event in enumerate(read, after + 1) if event.sequence == number]
        if not unbroken:
            # Not the next: the log was trimmed under this stream, or is broken. Nothing: or this primary lags behind.
            check_kept(after, await self._head(key))
            if read:
                raise _expired(key[1], oldest=read[0].sequence, head=feed.last_seq)
        return unbroken

    async def _head(self, key: Key) -> Head:
        found = await self._store.session(*key)
        if found is None:
            raise SessionNotFound(session_id=key[1])
        return found[1]

    def _pass(self, batch: Batch, event: StoredEvent, session_id: str, feed: Feed, wanted: Wanted) -> bool:
        """False when it did not fit."""
        place = batch.place
        text_wanted = wanted.previews and place.live and wanted.follows(event.turn_id)
        if event.kind == "message_completed" and text_wanted and not self._suffix(batch, event, session_id, feed):
            return False
        if wanted.has(event) and not batch.add(event.payload):
            return False
        batch.kinds.add(event.kind)
        feed.passed(event)
        if event.kind in _OF_THE_SPEAKER:
            batch.place = Place(sequence=event.sequence, live=place.live)
        else:
            batch.place = replace(place, sequence=event.sequence)
        return True

    def _suffix(self, batch: Batch, event: StoredEvent, session_id: str, feed: Feed) -> bool:
        """Before a whole message, what its deltas did not say yet: a reader of deltas alone has the exact text.

        False when it did not fit.
        """
        place = batch.place
        kept = feed.texts.get(place.message_id) if place.message_id else None
        message_id, attempt, text = (
            (place.message_id, *kept) if kept is not None else self._codec.message_text(event.payload)
        )
        if (place.message_id, place.attempt) != (message_id, attempt):
            place = replace(place, message_id=message_id, attempt=attempt, offset=0)
        while place.offset < len(text):
            offset, piece = piece_of(text, place.offset, most=DELTA_BYTES)
            payload = self._codec.delta(
                session_id,
                turn_id=event.turn_id,
                message_id=message_id,
                attempt=attempt,
                offset=offset,
                text=piece,
            )
            if not batch.add(payload):
                return False
            batch.place = place = replace(place, offset=offset + len(piece))
        return True

    def _preview(self, batch: Batch, session_id: str, feed: Feed, wanted: Wanted) -> None:
        preview = feed.preview
        if preview is None or preview.over or not preview.counts() or not wanted.follows(preview.turn_id):
            return
        place = batch.place
        if place.sequence > preview.known:
            feed.ask()
            return
        if (place.message_id, place.attempt) != (preview.message_id, preview.attempt):
            if place.message_id == preview.message_id and place.attempt > preview.attempt:
                return
            place = replace(place, message_id=preview.message_id, attempt=preview.attempt, offset=0)
        while place.offset < preview.size:
            end, payload = self._delta(preview, session_id, place.offset)
            if not batch.add(payload):
                return
            batch.place = place = replace(place, offset=end)

    def _delta(self, preview: Preview, session_id: str, offset: int) -> tuple[int, bytes]:
        """Serialized once for all watchers that stand at the same byte of the same text."""
        known = preview.encoded.get(offset)
        if known is not None:
            return known
        start, piece = preview.beyond(offset, most=DELTA_BYTES)
        payload = self._codec.delta(
            session_id,
            turn_id=preview.turn_id,
            message_id=preview.message_id,
            attempt=preview.attempt,
            offset=start,
            text=piece,
        )
        preview.encoded[offset] = known = (start + len(piece), payload)
        return known


async def _silent(changed: asyncio.Future[None], *, until: float) -> bool:
    """True when it is time to say that there is nothing to say."""
    clock = asyncio.get_running_loop().time
    await asyncio.wait([changed], timeout=max(0.0, until - clock()))
    return clock() >= until


def check_kept(sequence: int, head: Head) -> None:
    """Raises CursorExpired for a place before which the log may have been trimmed."""
    if sequence < head.compacted_to:
        raise _expired(head.session_id, oldest=head.compacted_to + 1, head=head.last_seq)


def _expired(session_id: str, *, oldest: int, head: int) -> CursorExpired:
    return CursorExpired(session_id=session_id, metadata={"oldest_sequence": str(oldest), "head_sequence": str(head)})


class Ended(Exception):
    """A planned end of a stream, with the place where the client goes on."""

    def __init__(self, error: StreamRotated | ServerDraining, place: Place) -> None:
        super().__init__(error.message)
        self.error = error
        self.place = place
