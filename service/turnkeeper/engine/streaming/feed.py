"""The live tail of one session on this replica: its last durable events, and the text of the message being written.

Watchers pull from it at their own pace. A slow one delays no other: it gets fewer and larger deltas, and reads the log
if it falls behind the events that the feed holds.
"""

import time
from collections.abc import Callable, Sequence

from turnkeeper.domain.cursor import StreamPosition, history_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import EVERYTHING, Batch, EventFilter
from turnkeeper.engine.streaming.feed_memory import FeedMemory
from turnkeeper.engine.streaming.log_reads import SharedPages
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.engine.streaming.tool_progress import ProgressLine, ToolProgress
from turnkeeper.engine.streaming.turn_cache import TurnCache
from turnkeeper.engine.streaming.wakeups import Broadcast
from turnkeeper.store.changeset import LogEnd, StoredEvent

RING_EVENTS = 256
"""Durable events that a feed holds at most."""
RING_BYTES = 1 << 20
"""Bytes of the durable events that a feed holds at most."""
EVENT_BYTES = 512
"""Memory of a durable event beside its bytes: the objects and ids."""
CACHED_TEXTS = 4
"""Whole messages whose text a feed holds for watchers that are behind."""
SHARED_BATCHES = 8
"""Batches that a feed shares at most: one for each position and filter."""
MIN_WATCHERS_TO_SHARE = 3
"""Batches are shared once a session has this many watchers; a turn that runs here counts as one."""
NO_EVENT = LogEnd(0)
NO_MESSAGE = ("", 0)
"""`Feed.looked_up` before the first lookup, and after one that found the database unavailable."""
_NO_SESSION = SessionKey("", "")


class Feed:
    """The live tail of one session. It exists while the session has a watcher or a turn that runs here."""

    __slots__ = (
        "_asked_intervals",
        "_batches",
        "_batches_change",
        "_before",
        "_end",
        "_filter",
        "_key",
        "_memory",
        "_published_at",
        "_request_preview",
        "_ring",
        "_ring_bytes",
        "changed",
        "delta_interval",
        "grown",
        "last_seq",
        "looked_up",
        "pages",
        "preview",
        "progress",
        "sent_at",
        "text_watchers",
        "texts",
        "turns",
        "watchers",
    )

    def __init__(
        self,
        request_preview: Callable[[SessionKey], None] = lambda _: None,
        key: SessionKey = _NO_SESSION,
        *,
        delta_interval: float = 0.0,
        memory: FeedMemory | None = None,
    ) -> None:
        """`request_preview` requests a lookup of the text that another replica writes in this session.

        `delta_interval` in seconds: how often watchers get deltas at most, unless they ask otherwise.
        """
        self._request_preview = request_preview
        self._key = key
        self._memory = memory or FeedMemory()
        self.delta_interval = delta_interval
        """Seconds between two times at which new text is shown, at least."""
        self._asked_intervals = [delta_interval]
        """The replica's interval, then those that watchers ask for."""
        self.watchers = 0
        """Watchers, waiting callers, and turns that run here."""
        self.text_watchers = 0
        """Watchers that want previews."""
        self.last_seq = 0
        """The number of the last event that this replica knows of."""
        self.sent_at = 0.0
        """When the last changeset published here was first sent, by `time.monotonic`.

        Every event that was stored before that time has a number of at most `last_seq`.
        """
        self.turns: TurnCache | None = None
        """The cached turns of the session; None while no caller waits for one."""
        self.preview: Preview | None = None
        """The message that is being written, here or on another replica."""
        self.progress: ToolProgress | None = None
        """How far tools are; None before one has told it."""
        self.looked_up = NO_MESSAGE
        """The message id and the attempt of the last chunk of another replica for which a lookup was requested.

        The lookup put the text into `preview`, or showed that it does not count; a second lookup would find no more.
        """
        self.texts: dict[str, tuple[int, bytes, str]] = {}
        """The last whole texts, by message id: attempt, UTF-8 and the changeset that stored it, for watchers behind."""
        self.changed = Broadcast()
        """Notifies watchers of the next event or chunk of text."""
        self.grown = Broadcast()
        """Notifies watchers of the next durable event."""
        self.pages = SharedPages()
        """The pages of the log that watchers have or read."""
        self._batches: list[tuple[StreamPosition, EventFilter, Batch]] = []
        """The batches shared since change number `_batches_change` of `changed`."""
        self._batches_change = 0
        self._filter = EVERYTHING
        """The filter of the watcher that began last."""
        self._end = NO_EVENT
        """The newest event that this replica knows of together with its changeset."""
        self._before = NO_EVENT
        """The event before the ring's first one."""
        self._ring: list[StoredEvent] = []
        self._published_at: list[float] = []
        self._ring_bytes = 0

    @property
    def end(self) -> LogEnd:
        """Returns the log's end as this replica knows it."""
        return self._end if self._end.sequence == self.last_seq else LogEnd(self.last_seq)

    def history(self, sequence: int) -> str:
        """Returns the log's history up to this event (`history_of`); empty if the feed does not know it."""
        for end in (self._end, self._before):
            if end.sequence == sequence:
                return history_of(end.changeset_id)
        index = sequence - self._ring[0].sequence if self._ring else -1
        return history_of(self._ring[index].changeset_id) if 0 <= index < len(self._ring) else ""

    def continues(self, position: StreamPosition) -> bool:
        """Returns True if the feed reaches this position, and has its history there.

        A notification names no history: one of a log that was lost may come late.
        """
        return position.sequence <= self.last_seq and position.history in ("", self.history(position.sequence))

    def reaches(self, sequence: int, *, since: float) -> bool:
        """Returns True if the feed holds the log's newest events from this number on, so that no read is needed.

        It does if a changeset of this replica was stored since this time of `time.monotonic`.
        """
        return self.sent_at >= since and sequence <= self.last_seq and self.since(sequence) is not None

    def reset(self, end: LogEnd) -> None:
        """Forgets a log that the database no longer has; it ends here now. Notifies every watcher."""
        self.rest()
        self._end = self._before = end
        self.last_seq = end.sequence
        self._forget()
        self.notify_all()

    def _forget(self) -> None:
        """Forgets everything but the ring of events."""
        self.sent_at, self.preview, self.progress, self.looked_up = 0.0, None, None, NO_MESSAGE
        self.pages.clear()
        self.texts.clear()
        if self.turns is not None:
            self.turns.clear()
        self._count(is_news=False)

    def rest(self) -> None:
        """Gives back what can be read from the log: there was no news for a while, or the last watcher has left."""
        self._drop(len(self._ring))
        self.texts.clear()
        self._batches = []
        if self.preview is not None and self.preview.ended:
            self.preview = None
        self._count(is_news=False)

    def _count(self, *, is_news: bool = True) -> None:
        """Counts what the feed holds now. A model call that was left behind may still write into a closed one."""
        size = self._ring_bytes + EVENT_BYTES * len(self._ring) + (self.preview.held if self.preview is not None else 0)
        size += sum([len(text) for _, text, _ in self.texts.values()]) if self.texts else 0
        self._memory.hold(self, size if self.watchers else 0, is_news=is_news)

    def publish(self, events: Sequence[StoredEvent], *, after: LogEnd = NO_EVENT) -> None:
        """Adds events that are committed, in order, and notifies the watchers. `after`: the log's end before them."""
        if not events:
            return
        if not self._fits(events[0], after):
            self.reset(after)
        for event in events:
            self._add(event, after)
            after = LogEnd(event.sequence, event.changeset_id)
        while len(self._ring) > RING_EVENTS or self._ring_bytes > RING_BYTES:
            self._drop(1)
        self._count()
        if after.sequence <= self.last_seq:
            self.notify_all()  # callers may wait for these, also if their numbers are known from a log that is lost
        self.notify_grown(after.sequence, after.changeset_id)

    def _add(self, event: StoredEvent, after: LogEnd) -> None:
        """Adds the event behind `after` to the ring, unless it is there; one that leaves a gap begins a new ring."""
        recent = self._ring
        if recent and event.sequence <= recent[-1].sequence:
            return
        if recent and event.sequence != recent[-1].sequence + 1:
            self._drop(len(recent))
        if not recent:
            self._before = after
        recent.append(event)
        self._published_at.append(time.monotonic())
        self._ring_bytes += len(event.payload)
        if event.kind == "message_completed":
            self._cache_text(event.changeset_id)

    def since(self, sequence: int) -> list[StoredEvent] | None:
        """Returns all events after this number; None if the feed does not hold all of them."""
        if sequence >= self.last_seq:
            return []
        if not self._ring or self._ring[0].sequence > sequence + 1 or self._ring[-1].sequence < self.last_seq:
            return None
        return self._ring[sequence + 1 - self._ring[0].sequence :]

    def lag(self, sequence: int) -> float | None:
        """Returns the seconds since this event was published here; None if the feed does not hold it."""
        index = sequence - self._ring[0].sequence if self._ring else -1
        return time.monotonic() - self._published_at[index] if 0 <= index < len(self._published_at) else None

    def notify_grown(self, last_seq: int, changeset_id: str = "") -> None:
        """Notifies the watchers that the log has events up to this number, which this changeset stored if known.

        If another changeset stored the last one, the database was restored: what is kept of the lost log is forgotten.
        """
        is_other = self.end.sequence == last_seq and len({self.end.changeset_id, changeset_id, ""}) > 2
        if changeset_id and last_seq >= self.last_seq:
            self._end = LogEnd(last_seq, changeset_id)
        if is_other and self._ring and self._ring[-1].changeset_id != changeset_id:
            self._drop(len(self._ring))
            self._before = NO_EVENT
        if is_other:
            self._forget()
        if last_seq > self.last_seq or is_other:
            self.last_seq = last_seq
            self.notify_all()

    def notify_changed(self) -> None:
        """Notifies the watchers of previews that there is new text, or that the text no longer counts."""
        self._count()
        self.changed.notify()

    def notify_all(self) -> None:
        """Notifies every watcher, so that it looks at the feed again. It sees all text that is there."""
        if self.preview is not None:
            self.preview.uncover()
        self.grown.notify()
        self.changed.notify()

    def begin_preview(
        self,
        *,
        turn_id: str,
        message_id: str,
        attempt: int,
        started_after: int = 0,
        lease_held: Callable[[], bool] = lambda: True,
    ) -> Preview:
        """Returns the preview of a message that this replica begins to write; see Preview for the parameters."""
        self.preview = Preview(
            self.notify_changed,
            turn_id=turn_id,
            message_id=message_id,
            attempt=attempt,
            started_after=started_after,
            lease_held=lease_held,
        )
        self._set_interval()
        return self.preview

    def begin_remote_preview(self, *, turn_id: str, message_id: str, attempt: int, started_after: int) -> Preview:
        """Returns the preview of a message that another replica writes."""
        preview = self.begin_preview(
            turn_id=turn_id, message_id=message_id, attempt=attempt, started_after=started_after
        )
        preview.local = False
        return preview

    def drop_preview(self) -> None:
        """Drops the text of the message that was being written, and notifies the watchers."""
        self.preview = None
        self.notify_changed()

    def show_progress(self, line: ProgressLine) -> None:
        """Shows the watchers of previews how far a tool is."""
        if self.progress is None:
            self.progress = ToolProgress()
        self.progress.put(line)
        self.changed.notify()

    def add_text_watcher(self, *, interval: float | None = None) -> None:
        """Counts a watcher of previews, and requests the text of a turn that runs on another replica.

        `interval` is how often it wants deltas at most, in seconds; None: as often as the replica shows them.
        """
        self.text_watchers += 1
        if interval is not None:
            self._asked_intervals.append(interval)
            self._set_interval()
        if self.preview is None or not self.preview.local:
            self.request_preview()

    def remove_text_watcher(self, *, interval: float | None = None) -> None:
        """Forgets a watcher of previews that wanted this interval."""
        self.text_watchers -= 1
        if interval is not None:
            self._asked_intervals.remove(interval)
            self._set_interval()

    def _set_interval(self) -> None:
        if self.preview is not None:
            self.preview.interval = min(self._asked_intervals)

    def request_preview(self) -> None:
        """Requests a lookup of the text that another replica writes in this session."""
        self._request_preview(self._key)

    def cache_turns(self) -> TurnCache:
        """Returns the session's turn cache, which is kept until the caller calls `release_turns`."""
        if self.turns is None:
            self.turns = TurnCache()
        self.turns.waiters += 1
        return self.turns

    def release_turns(self) -> None:
        """Drops the turn cache after its last waiter."""
        if self.turns is not None:
            self.turns.waiters -= 1
            if not self.turns.waiters:
                self.turns = None

    def same_filter(self, event_filter: EventFilter) -> EventFilter:
        """Returns an equal filter: one object for consecutive watchers with equal filters, to compare fast."""
        if self._filter != event_filter:
            self._filter = event_filter
        return self._filter

    def shared_batch(self, position: StreamPosition, event_filter: EventFilter) -> Batch | None:
        """Returns another watcher's batch at this position with this filter; None if none was shared since a change."""
        if self._batches_change != self.changed.count:
            return None
        for start, shared, batch in self._batches:
            if (start is position or start == position) and (shared is event_filter or shared == event_filter):
                return batch if batch.valid else None
        return None

    def share_batch(self, position: StreamPosition, event_filter: EventFilter, batch: Batch) -> None:
        """Keeps a batch, until the next change, for other watchers at its position with its filter."""
        if self.watchers < MIN_WATCHERS_TO_SHARE:
            return
        if self._batches_change != self.changed.count:
            self._batches, self._batches_change = [], self.changed.count
        if len(self._batches) < SHARED_BATCHES:
            self._batches.append((position, event_filter, batch))

    def _fits(self, event: StoredEvent, after: LogEnd) -> bool:
        """Returns False if the ring is of another history than an event that was committed behind `after`."""
        known = {stored.sequence: stored.changeset_id for stored in self._ring[-1:]}
        index = event.sequence - self._ring[0].sequence if self._ring else -1
        if 0 <= index < len(self._ring):
            known = {event.sequence: self._ring[index].changeset_id}
        return all(
            known.get(end.sequence, end.changeset_id) == end.changeset_id
            for end in (after, LogEnd(event.sequence, event.changeset_id))
            if end.changeset_id
        )

    def _drop(self, count: int) -> None:
        """Drops the oldest `count` events."""
        if count:
            last = self._ring[count - 1]
            self._before = LogEnd(last.sequence, last.changeset_id)
        self._ring_bytes -= sum(len(event.payload) for event in self._ring[:count])
        del self._ring[:count], self._published_at[:count]

    def _cache_text(self, changeset_id: str) -> None:
        """Moves the text of a whole message from the preview to `texts`. Drops it if another replica wrote it."""
        if self.preview is None:
            return
        preview, self.preview = self.preview, None
        if not preview.local:
            return
        self.texts[preview.message_id] = (preview.attempt, preview.text().encode(), changeset_id)
        while len(self.texts) > CACHED_TEXTS:
            del self.texts[next(iter(self.texts))]
