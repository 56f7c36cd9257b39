"""Batches made of the log's events and of the text that is being written. No I/O."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.feed import RESETS, Feed
from turnkeeper.engine.streaming.preview import piece_of
from turnkeeper.store.changeset import StoredEvent

DELTA_BYTES = 16 * 1024

_OF_THE_SPEAKER = RESETS - {"turn_cancelled"}
"""Only the turn that speaks has these; a queued turn can be cancelled beside it, and its text goes on."""


class PreviewCodec(Protocol):
    """How deltas become bytes, and what a stored message's text is."""

    def delta(self, session_id: str, *, turn_id: str, message_id: str, attempt: int, offset: int, text: bytes) -> bytes:
        """The wire form of a `content_delta` event."""
        ...

    def message_text(self, payload: bytes) -> tuple[str, int, bytes]:
        """Of a stored `message_completed`: message id, attempt, text in UTF-8."""
        ...


class BatchBuilder:
    """Collects what a reader at a place is due."""

    def __init__(self, codec: PreviewCodec) -> None:
        self._codec = codec

    def collect(
        self, page: Sequence[StoredEvent], session_id: str, place: StreamPosition, *, feed: Feed, wanted: EventFilter
    ) -> Batch:
        """Of these events, which are the next ones, and then of the text, as much as fits."""
        batch = Batch(place)
        if page and not self._pass(batch, page, session_id, feed, wanted):
            return batch
        if wanted.previews and batch.place.live and batch.place.sequence >= feed.last_seq:
            self._preview(batch, session_id, feed, wanted)
        return batch

    def _pass(
        self, batch: Batch, page: Sequence[StoredEvent], session_id: str, feed: Feed, wanted: EventFilter
    ) -> bool:
        """False when not all did fit."""
        sequence = batch.place.sequence
        text_wanted, everything = wanted.previews and batch.place.live, not (wanted.kinds or wanted.turn_id)
        for event in page:
            kind = event.kind
            said = text_wanted and kind == "message_completed" and wanted.follows(event.turn_id)
            if said and not self._suffix(batch, event, session_id, feed):
                break
            if (everything or wanted.has(event)) and not batch.add(event.payload):
                break
            if kind not in batch.kinds:
                batch.kinds |= {kind}
            if feed.preview is not None:
                feed.passed(event)
            sequence = event.sequence
            if batch.place.message_id and kind in _OF_THE_SPEAKER:
                batch.place = StreamPosition(sequence=sequence, live=batch.place.live)
        if batch.place.sequence != sequence:
            batch.place = replace(batch.place, sequence=sequence)
        return not batch.full

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
                session_id, turn_id=event.turn_id, message_id=message_id, attempt=attempt, offset=offset, text=piece
            )
            if not batch.add(payload):
                return False
            batch.place = place = replace(place, offset=offset + len(piece))
        return True

    def _preview(self, batch: Batch, session_id: str, feed: Feed, wanted: EventFilter) -> None:
        preview, place = feed.preview, batch.place
        if preview is None or not preview.stands or not wanted.follows(preview.turn_id):
            return
        if place.sequence > preview.known:
            feed.ask()
            return
        message_id, attempt, offset = preview.message_id, preview.attempt, place.offset
        if (place.message_id, place.attempt) != (message_id, attempt):
            if place.message_id == message_id and place.attempt > attempt:
                return
            offset = 0
        while offset < preview.size:
            start, piece = preview.beyond(offset, most=DELTA_BYTES)
            payload = self._codec.delta(
                session_id, turn_id=preview.turn_id, message_id=message_id, attempt=attempt, offset=start, text=piece
            )
            if not batch.add(payload):
                break
            offset, batch.preview = start + len(piece), preview
        if batch.preview is not None:
            batch.place = StreamPosition(
                sequence=place.sequence, message_id=message_id, attempt=attempt, offset=offset, live=place.live
            )
