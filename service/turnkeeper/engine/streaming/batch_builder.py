"""Batches made of the log's events and of the text that is being written. No I/O."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.preview import piece_of
from turnkeeper.store.changeset import StoredEvent

DELTA_BYTES = 16 * 1024


class PreviewCodec(Protocol):
    """How deltas become bytes, and what a stored message's text is."""

    def delta(  # noqa: PLR0913 - the fields of the message
        self, session_id: str, *, turn_id: str, message_id: str, attempt: int, offset: int, text: bytes, restarts: bool
    ) -> bytes:
        """Returns the wire form of a `content_delta` event."""
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
            message_id = self._suffix(batch, event, session_id, feed) if said else ""
            if message_id is None or ((everything or wanted.has(event)) and not batch.add(event.payload)):
                break
            if kind not in batch.kinds:
                batch.kinds |= {kind}
            if feed.preview is not None:
                feed.passed(event)
            sequence = event.sequence
            if batch.place.message_id and _settles(event, batch.place, wanted, message_id=message_id):
                batch.place = StreamPosition(sequence=sequence, live=batch.place.live)
        if batch.place.sequence != sequence:
            batch.place = replace(batch.place, sequence=sequence)
        return not batch.full

    def _suffix(self, batch: Batch, event: StoredEvent, session_id: str, feed: Feed) -> str | None:
        """Adds the text of a whole message that its deltas lack: a reader of deltas alone has the exact text.

        Returns the message's id, or None if the text did not fit.
        """
        place = batch.place
        kept = feed.texts.get(place.message_id) if place.message_id else None
        message_id, attempt, text = (
            (place.message_id, *kept) if kept is not None else self._codec.message_text(event.payload)
        )
        restarts = False
        if (place.message_id, place.attempt) != (message_id, attempt):
            restarts = bool(place.message_id)
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
                restarts=restarts,
            )
            if not batch.add(payload):
                return None
            batch.place = place = replace(place, offset=offset + len(piece))
            restarts = False
        return message_id

    def _preview(self, batch: Batch, session_id: str, feed: Feed, wanted: EventFilter) -> None:
        preview, place = feed.preview, batch.place
        if preview is None or not preview.stands or not wanted.follows(preview.turn_id):
            return
        if place.sequence > preview.known:
            feed.ask()
            return
        message_id, attempt, offset, restarts = preview.message_id, preview.attempt, place.offset, False
        if (place.message_id, place.attempt) != (message_id, attempt):
            if place.message_id == message_id and place.attempt > attempt:
                return
            offset, restarts = 0, bool(place.message_id)
        while offset < preview.size:
            start, piece = preview.beyond(offset, most=DELTA_BYTES)
            payload = self._codec.delta(
                session_id,
                turn_id=preview.turn_id,
                message_id=message_id,
                attempt=attempt,
                offset=start,
                text=piece,
                restarts=restarts,
            )
            if not batch.add(payload):
                break
            offset, restarts, batch.preview = start + len(piece), False, preview
        if batch.preview is not None:
            batch.place = StreamPosition(
                sequence=place.sequence, message_id=message_id, attempt=attempt, offset=offset, live=place.live
            )


def _settles(event: StoredEvent, place: StreamPosition, wanted: EventFilter, *, message_id: str) -> bool:
    """True if no later piece can take back the text up to `place`: its message is whole, or its turn is over for good.

    `message_id`: of the whole message, where its text was wanted. One without text leaves an earlier attempt's text
    standing. After a failed or superseded attempt the place keeps the message: the next piece `restarts` it.
    """
    if not wanted.follows(event.turn_id):
        return False
    whole = event.kind == "message_completed" and message_id in ("", place.message_id)
    return whole or event.kind == "turn_started"
