"""One reader's way through a session's stream: the log first, then the live tail.

The read by number is the truth and a notification only a hint (promise I2). The reader's place moves as batches are
made; a batch that could not be delivered is made again from the cursor that the client holds.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from turnkeeper.domain.cursor import Place
from turnkeeper.engine.feed import Feed, Feeds, Key, Preview, whole_characters
from turnkeeper.errors import CursorExpired, InvalidRequest, ServerDraining, SessionError, StreamRotated
from turnkeeper.store.contract import Store, StoredEvent
from turnkeeper.telemetry.metrics import Metrics

BATCH_EVENTS = 64
BATCH_BYTES = 64 * 1024
DELTA_BYTES = 16 * 1024
PAGE = 256

RESETS = frozenset({"message_completed", "attempt_failed", "attempt_superseded", "turn_retried", "turn_cancelled"})
"""After these the text that was being written is whole, or does not count."""


class PreviewCodec(Protocol):
    """How deltas become bytes, and what a stored message's text is."""

    def delta(self, session_id: str, *, turn_id: str, message_id: str, attempt: int, offset: int, text: str) -> bytes:
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
        return (not self.kinds or event.kind in self.kinds) and (not self.turn_id or event.turn_id == self.turn_id)


@dataclass(slots=True)
class Batch:
    """Goes into one response. Without events it is a heartbeat."""

    events: list[bytes] = field(default_factory=list)
    size: int = 0
    place: Place = field(default_factory=Place)
    caught_up: bool = False
    kinds: set[str] = field(default_factory=set)
    """The kinds of the durable events that were passed, wanted or not."""

    @property
    def full(self) -> bool:
        return len(self.events) >= BATCH_EVENTS or self.size >= BATCH_BYTES

    def add(self, payload: bytes) -> None:
        self.events.append(payload)
        self.size += len(payload)


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

    async def follow(self, key: Key, start: Place, wanted: Wanted) -> AsyncIterator[Batch]:
        """Batches from `start` on; ends by itself only when `wanted.forever` is False.

        Raises CursorExpired, InvalidRequest for a place beyond the log, and, with the place in `Ended.place`, the
        planned ends StreamRotated and ServerDraining.
        """
        ends_at = asyncio.get_running_loop().time() + self._rotation * self._rng.uniform(0.9, 1.1)
        with self._feeds.attach(key) as feed:
            last_seq = (await self._store.last_seqs([key])).get(key, 0)
            if start.sequence > last_seq:
                raise InvalidRequest(
                    f"There is no event {start.sequence} yet; the last one is {last_seq}.", session_id=key[1]
                )
            feed.heard(last_seq)
            place, told = start, False
            while True:
                changed = feed.changed()
                batch = await self._collect(key, feed, place, wanted)
                at_end = batch.place.sequence >= feed.last_seq and not batch.full
                if at_end and not told:
                    told = batch.caught_up = True
                    batch.place = replace(batch.place, live=True)
                place = batch.place
                if batch.events or batch.caught_up:
                    yield batch
                if place.live and (lag := feed.lag(place.sequence)) is not None and batch.kinds:
                    self._metrics.delivery_lag(lag)
                if at_end and not wanted.forever:
                    return
                self._planned_end(key, place, ends_at)
                if at_end and not batch.events and await self._silence(changed, ends_at):
                    yield Batch(place=place)

    def _planned_end(self, key: Key, place: Place, ends_at: float) -> None:
        if self._feeds.draining:
            raise Ended(ServerDraining(session_id=key[1]), place)
        if asyncio.get_running_loop().time() >= ends_at:
            raise Ended(StreamRotated(session_id=key[1]), place)

    async def _silence(self, changed: asyncio.Future[None], ends_at: float) -> bool:
        """True when nothing came until a heartbeat is due, or the stream's planned end."""
        left = ends_at - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait([changed], timeout=max(0.0, min(self._heartbeat, left)))
        return not done

    async def _collect(self, key: Key, feed: Feed, place: Place, wanted: Wanted) -> Batch:
        batch = Batch(place=place)
        events = await self._durable(key, feed, place.sequence)
        for event in events:
            if batch.full:
                return batch
            self._pass(batch, event, key[1], feed, wanted)
        if batch.place.live and wanted.previews and batch.place.sequence >= feed.last_seq:
            self._preview(batch, key[1], feed, wanted)
        return batch

    async def _durable(self, key: Key, feed: Feed, after: int) -> list[StoredEvent]:
        held = feed.since(after)
        if held is not None:
            return held
        self._metrics.replay("LOG")
        read = list(await self._store.events(*key, after=after, limit=PAGE))
        if read and read[0].sequence != after + 1:
            raise CursorExpired(
                session_id=key[1],
                metadata={"oldest_sequence": str(read[0].sequence), "head_sequence": str(feed.last_seq)},
            )
        return read

    def _pass(self, batch: Batch, event: StoredEvent, session_id: str, feed: Feed, wanted: Wanted) -> None:
        place = batch.place
        if event.kind == "message_completed" and place.live and wanted.previews and wanted.has(event):
            self._missing_suffix(batch, event, session_id, feed)
        if wanted.has(event):
            batch.add(event.payload)
        batch.kinds.add(event.kind)
        if event.kind in RESETS:
            batch.place = Place(sequence=event.sequence, live=place.live)
        else:
            batch.place = replace(place, sequence=event.sequence)

    def _missing_suffix(self, batch: Batch, event: StoredEvent, session_id: str, feed: Feed) -> None:
        """Before a whole message, what its deltas did not say yet: a reader of deltas alone has the exact text."""
        place = batch.place
        kept = feed.texts.get(place.message_id) if place.message_id else None
        message_id, attempt, text = (
            (place.message_id, *kept) if kept is not None else self._codec.message_text(event.payload)
        )
        same = place.message_id == message_id and place.attempt == attempt
        offset = place.offset if same else 0
        rest = text[offset:]
        while rest:
            piece = whole_characters(rest[:DELTA_BYTES])
            batch.add(
                self._codec.delta(
                    session_id,
                    turn_id=event.turn_id,
                    message_id=message_id,
                    attempt=attempt,
                    offset=offset,
                    text=piece.decode(errors="ignore"),
                )
            )
            offset += len(piece)
            rest = rest[len(piece) :]

    def _preview(self, batch: Batch, session_id: str, feed: Feed, wanted: Wanted) -> None:
        preview = feed.preview
        if preview is None or (wanted.turn_id and preview.turn_id != wanted.turn_id):
            return
        place = batch.place
        if place.message_id != preview.message_id or place.attempt != preview.attempt:
            if place.message_id == preview.message_id and place.attempt > preview.attempt:
                return
            place = replace(place, message_id=preview.message_id, attempt=preview.attempt, offset=0)
        while not batch.full and place.offset < preview.size:
            end, payload = self._delta(preview, session_id, place.offset)
            batch.add(payload)
            place = replace(place, offset=end)
        batch.place = place

    def _delta(self, preview: Preview, session_id: str, offset: int) -> tuple[int, bytes]:
        """Serialized once for all watchers that stand at the same byte of the same text."""
        known = preview.encoded.get(offset)
        if known is not None:
            return known
        text = preview.beyond(offset, most=DELTA_BYTES)
        payload = self._codec.delta(
            session_id,
            turn_id=preview.turn_id,
            message_id=preview.message_id,
            attempt=preview.attempt,
            offset=offset,
            text=text.decode(errors="ignore"),
        )
        preview.encoded[offset] = known = (offset + len(text), payload)
        return known


class Ended(Exception):
    """A planned end of a stream, with the place where the client goes on."""

    def __init__(self, error: StreamRotated | ServerDraining, place: Place) -> None:
        super().__init__(error.message)
        self.error = error
        self.place = place

    def with_cursor(self, encode: Callable[[Place], str]) -> SessionError:
        """The error that tells the client where to go on."""
        self.error.cursor = encode(self.place)
        return self.error
