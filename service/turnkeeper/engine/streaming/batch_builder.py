"""Builds batches from the log's events and from the text of the message that is being written. No I/O."""

from collections.abc import Sequence
from typing import Protocol

from turnkeeper.domain.cursor import StreamPosition, history_of
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.preview import characters_from
from turnkeeper.store.changeset import StoredEvent

DELTA_BYTES = 16 * 1024
"""Bytes of text of one delta at most."""
_NO_TEXT = (0, b"", "")


class PreviewCodec(Protocol):
    """Encodes deltas, and decodes the text of stored messages."""

    def delta(  # noqa: PLR0913 - the fields of the message
        self, session_id: str, *, turn_id: str, message_id: str, attempt: int, offset: int, text: bytes, restarts: bool
    ) -> bytes:
        """Returns the wire form of a `content_delta` event."""
        ...

    def progress(self, session_id: str, *, turn_id: str, attempt: int, tool_call_id: str, message: str) -> bytes:
        """Returns the wire form of a `tool_progress` event."""
        ...

    def message_text(self, payload: bytes) -> tuple[str, int, bytes]:
        """Returns the message id, the attempt and the text in UTF-8 of a stored `message_completed`."""
        ...


class BatchBuilder:
    """Builds the next batch for a watcher at a position."""

    def __init__(self, codec: PreviewCodec) -> None:
        """`codec` encodes the deltas."""
        self._codec = codec

    def build(
        self,
        page: Sequence[StoredEvent],
        session_id: str,
        position: StreamPosition,
        *,
        feed: Feed,
        event_filter: EventFilter,
    ) -> Batch:
        """Returns a batch of the page's events after the position, then of the preview's text, as much as fits."""
        batch = Batch(position)
        if page and not self._add_events(batch, page, session_id, feed, event_filter):
            return batch
        if event_filter.previews and batch.position.live and batch.position.sequence >= feed.last_seq:
            self._add_preview(batch, session_id, feed, event_filter)
        return batch

    def shown_last(
        self, session_id: str, position: StreamPosition, *, feed: Feed, event_filter: EventFilter
    ) -> Batch | None:
        """Returns a batch of the text that was shown last; None if a watcher at this position lacks anything else.

        Nearly every batch is such a one. A log that was lost takes its preview with it, so that the position of a
        watcher which has a part of this text is not compared with the log.
        """
        preview = feed.preview
        if preview is None or not position.live or feed.last_seq != position.sequence:
            return None
        if position.message_id != preview.message_id or position.attempt != preview.attempt:
            return None
        if position.sequence > preview.checked_through:
            return None
        text = preview.shown_last(position.offset)
        if not 0 < len(text) <= DELTA_BYTES or not event_filter.has_turn(preview.turn_id) or not preview.valid:
            return None
        batch = Batch(position.at(position.message_id, attempt=position.attempt, offset=position.offset + len(text)))
        batch.add(
            self._codec.delta(
                session_id,
                turn_id=preview.turn_id,
                message_id=position.message_id,
                attempt=position.attempt,
                offset=position.offset,
                text=text,
                restarts=False,
            )
        )
        batch.preview = preview
        return batch

    def progress(
        self, session_id: str, position: StreamPosition, after: int, *, feed: Feed, event_filter: EventFilter
    ) -> tuple[Batch, int]:
        """Returns a batch of how far tools are, for a watcher at the log's end that was shown the lines up to `after`.

        The second value is the number of the last line that it has now. The batch does not move the position.
        """
        batch = Batch(position)
        if feed.progress is None:
            return batch, after
        for line in feed.progress.since(after, last_seq=feed.last_seq):
            if event_filter.has_turn(line.turn_id):
                line.wire = line.wire or self._codec.progress(
                    session_id,
                    turn_id=line.turn_id,
                    attempt=line.attempt,
                    tool_call_id=line.tool_call_id,
                    message=line.message,
                )
                if not batch.add(line.wire):
                    return batch, after
            after = line.number
        return batch, max(after, feed.progress.newest)

    def _add_events(
        self, batch: Batch, page: Sequence[StoredEvent], session_id: str, feed: Feed, event_filter: EventFilter
    ) -> bool:
        """Adds the events that the watcher wants. Returns False if not all of them fit."""
        last: StoredEvent | None = None
        wants_text = event_filter.previews and batch.position.live
        wants_all = not (event_filter.kinds or event_filter.turn_id)
        for event in page:
            kind = event.kind
            has_text = wants_text and kind == "message_completed" and event_filter.has_turn(event.turn_id)
            message_id = self._add_rest(batch, event, session_id, feed) if has_text else ""
            if message_id is None or ((wants_all or event_filter.has(event)) and not batch.add(event.payload)):
                break
            if kind not in batch.kinds:
                batch.kinds |= {kind}
            if feed.preview is not None:
                feed.preview.apply(event)
            last = event
            if batch.position.message_id and _settles(event, batch.position, event_filter, message_id=message_id):
                batch.position = StreamPosition(live=batch.position.live)
        if last is not None:
            batch.position = batch.position._replace(sequence=last.sequence, history=history_of(last.changeset_id))
        return not batch.full

    def _add_rest(self, batch: Batch, event: StoredEvent, session_id: str, feed: Feed) -> str | None:
        """Adds the text of a whole message that its deltas lack, so that a reader of deltas alone has the exact text.

        A message without text gets an empty delta if it replaces text that no longer counts. Returns the message's id,
        or None if the text did not fit.
        """
        position = batch.position
        attempt, text, changeset_id = feed.texts.get(position.message_id, _NO_TEXT)
        message_id = position.message_id
        if not attempt or changeset_id != event.changeset_id:  # perhaps the text of a log that was lost
            message_id, attempt, text = self._codec.message_text(event.payload)
        restarts = False
        if (position.message_id, position.attempt) != (message_id, attempt):
            restarts = bool(position.message_id)
            position = position.at(message_id, attempt=attempt, offset=0)
        while restarts or position.offset < len(text):
            offset, chunk = characters_from(text, position.offset, most=DELTA_BYTES)
            payload = self._codec.delta(
                session_id,
                turn_id=event.turn_id,
                message_id=message_id,
                attempt=attempt,
                offset=offset,
                text=chunk,
                restarts=restarts,
            )
            if not batch.add(payload):
                return None
            batch.position = position = position.at(message_id, attempt=attempt, offset=offset + len(chunk))
            restarts = False
        return message_id

    def _add_preview(self, batch: Batch, session_id: str, feed: Feed, event_filter: EventFilter) -> None:
        """Adds deltas of the message that is being written, if the watcher wants them and they count."""
        preview, position = feed.preview, batch.position
        if preview is None or not preview.valid or not event_filter.has_turn(preview.turn_id):
            return
        if position.sequence > preview.checked_through:
            feed.request_preview()
            return
        message_id, attempt, offset, restarts = preview.message_id, preview.attempt, position.offset, False
        if (position.message_id, position.attempt) != (message_id, attempt):
            if position.message_id == message_id and position.attempt > attempt:
                return
            offset, restarts = 0, bool(position.message_id)
        while offset < preview.shown:
            start, chunk = preview.text_from(offset, most=DELTA_BYTES, until=preview.shown)
            payload = self._codec.delta(
                session_id,
                turn_id=preview.turn_id,
                message_id=message_id,
                attempt=attempt,
                offset=start,
                text=chunk,
                restarts=restarts,
            )
            if not batch.add(payload):
                break
            offset, restarts, batch.preview = start + len(chunk), False, preview
        if batch.preview is not None:
            batch.position = position.at(message_id, attempt=attempt, offset=offset)


def _settles(event: StoredEvent, position: StreamPosition, event_filter: EventFilter, *, message_id: str) -> bool:
    """Returns True if no later delta can replace the text up to `position`: its message is whole, or its turn is over.

    `message_id` names the whole message whose text was wanted. After a failed or superseded attempt the position keeps
    the message, and the next delta `restarts` it.
    """
    if not event_filter.has_turn(event.turn_id):
        return False
    whole = event.kind == "message_completed" and message_id in ("", position.message_id)
    return whole or event.kind == "turn_started"
