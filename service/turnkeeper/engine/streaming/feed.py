"""Follow a session: replay, caught-up, live; previews.

A feed is the live tail of one session inside this replica: the last durable events and the text of the message that
is being written. Watchers pull from it at their own pace, so a slow one holds nothing back and costs nothing: it finds
fewer, larger deltas, and reads the log where the ring no longer reaches. A notification is only a hint.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import EVERYTHING, Batch, EventFilter
from turnkeeper.engine.streaming.log_reads import SharedRead
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.engine.streaming.turn_cache import CachedTurn, TurnCache
from turnkeeper.engine.streaming.wakeups import Broadcast, either
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Changeset, Committed, StoredEvent
from turnkeeper.store.contract import EventLog

logger = logging.getLogger(__name__)
T = TypeVar("T")

RING_EVENTS = 256
RING_BYTES = 1 << 20
KEPT_TEXTS = 4
SHARED = 8
"""Batches that are kept: for as many places at which watchers stand, or wishes that they have."""
RARELY = 10
"""One poll in so many is made while hints come: it finds what a hint that got lost would have told."""
CROWD = 3
"""Watchers for whom a batch is kept; the run of a turn counts as one."""
RESETS = frozenset(
    {"message_completed", "attempt_failed", "attempt_superseded", "turn_failed", "turn_retried", "turn_cancelled"}
)
"""After these the text that their turn was writing is whole, or does not count."""

NOTHING = ("", 0)
_NO_SESSION = SessionKey("", "")


class Feed:
    """One session's live tail. It lives while somebody watches it or a turn of it runs here."""

    __slots__ = (
        "_ask",
        "_key",
        "_made",
        "_made_at",
        "_published_at",
        "_ring",
        "_ring_bytes",
        "_wish",
        "changed",
        "flight",
        "grown",
        "known",
        "last_seq",
        "no_longer",
        "preview",
        "sent_at",
        "text_watchers",
        "texts",
        "watchers",
    )

    def __init__(self, ask: Callable[[SessionKey], None] = lambda _: None, key: SessionKey = _NO_SESSION) -> None:
        """`ask`: have it looked up what other replicas write in this session."""
        self._ask = ask
        self._key = key
        self.watchers = 0
        self.text_watchers = 0
        self.last_seq = 0
        self.sent_at = 0.0
        """When the last step of ours that was published here was sent: all that was stored before that is heard of."""
        self.known: TurnCache | None = None
        self.preview: Preview | None = None
        self.no_longer = NOTHING
        """The last message and attempt of another replica's that was looked up: it is `preview`, or does not count."""
        self.texts: dict[str, tuple[int, bytes]] = {}
        """Whole texts of the last messages, by message id: attempt and UTF-8, for watchers that lag behind."""
        self.changed = Broadcast()
        """At the next event or piece of text."""
        self.grown = Broadcast()
        """At the next durable event."""
        self.flight: SharedRead | None = None
        """The page of the log that is being read."""
        self._made: list[tuple[StreamPosition, EventFilter, Batch]] = []
        self._made_at = 0
        self._wish = EVERYTHING
        self._ring: list[StoredEvent] = []
        self._published_at: list[float] = []
        self._ring_bytes = 0

    def ask(self) -> None:
        self._ask(self._key)

    def begin(
        self, *, turn_id: str, message_id: str, attempt: int, since: int = 0, counts: Callable[[], bool] = lambda: True
    ) -> Preview:
        """See Preview."""
        self.preview = Preview(
            self.notify, turn_id=turn_id, message_id=message_id, attempt=attempt, since=since, counts=counts
        )
        return self.preview

    def begin_elsewhere(self, *, turn_id: str, message_id: str, attempt: int, since: int) -> Preview:
        """The text of a message that another replica writes."""
        preview = self.begin(turn_id=turn_id, message_id=message_id, attempt=attempt, since=since)
        preview.ours = False
        return preview

    def same(self, wanted: EventFilter) -> EventFilter:
        """The same wish, and the same object as its neighbours have, where that can be told at once."""
        if self._wish != wanted:
            self._wish = wanted
        return self._wish

    def show(self) -> None:
        """Somebody watches the text, also that of a turn that runs elsewhere."""
        self.text_watchers += 1
        if self.preview is None or not self.preview.ours:
            self.ask()

    def drop_preview(self) -> None:
        """The text that was being written does not count."""
        self.preview = None
        self.notify()

    def publish(self, events: Sequence[StoredEvent]) -> None:
        """Events that are confirmed to be stored, in order."""
        ring = self._ring
        for event in events:
            if ring and event.sequence <= ring[-1].sequence:
                continue
            if ring and event.sequence != ring[-1].sequence + 1:
                self._forget(len(ring))
            ring.append(event)
            self._published_at.append(time.monotonic())
            self._ring_bytes += len(event.payload)
            if event.kind == "message_completed":
                self._keep_text()
        while len(ring) > RING_EVENTS or self._ring_bytes > RING_BYTES:
            self._forget(1)
        if events:
            self.heard(events[-1].sequence)

    def _forget(self, oldest: int) -> None:
        self._ring_bytes -= sum(len(event.payload) for event in self._ring[:oldest])
        del self._ring[:oldest], self._published_at[:oldest]

    def know_turns(self) -> TurnCache:
        """Keep what our steps make of turns; `forget_turns` when that is of no use any more."""
        if self.known is None:
            self.known = TurnCache()
        self.known.watchers += 1
        return self.known

    def forget_turns(self) -> None:
        if self.known is not None:
            self.known.watchers -= 1
            if not self.known.watchers:
                self.known = None

    def shared(self, place: StreamPosition, wanted: EventFilter) -> Batch | None:
        """What another watcher at this place, with the same wish, was given since the last change."""
        if self._made_at != self.changed.fired:
            return None
        for at, wish, batch in self._made:
            if (at is place or at == place) and (wish is wanted or wish == wanted):
                return batch if batch.counts else None
        return None

    def share(self, place: StreamPosition, wanted: EventFilter, batch: Batch) -> None:
        """With watchers at the same place."""
        if self.watchers < CROWD:
            return
        if self._made_at != self.changed.fired:
            self._made, self._made_at = [], self.changed.fired
        if len(self._made) < SHARED:
            self._made.append((place, wanted, batch))

    def passed(self, event: StoredEvent) -> None:
        """A reader met this event, perhaps before the preview's owner knows of it."""
        preview = self.preview
        if preview is not None and preview.turn_id == event.turn_id and preview.since < event.sequence:
            preview.over = preview.over or event.kind in RESETS
        if preview is not None and preview.known + 1 == event.sequence:
            preview.known = event.sequence

    def heard(self, last_seq: int) -> None:
        """There are events up to this number."""
        if last_seq > self.last_seq:
            self.last_seq = last_seq
            self.wake()

    def notify(self) -> None:
        self.changed.fire()

    def wake(self) -> None:
        """Let every watcher look again, though perhaps nothing came."""
        self.grown.fire()
        self.changed.fire()

    def since(self, sequence: int) -> list[StoredEvent] | None:
        """What the ring holds after this number; None when it does not reach back that far."""
        if sequence >= self.last_seq:
            return []
        if not self._ring or self._ring[0].sequence > sequence + 1 or self._ring[-1].sequence < self.last_seq:
            return None
        return self._ring[sequence + 1 - self._ring[0].sequence :]

    def lag(self, sequence: int) -> float | None:
        """Seconds since this event was published here; None when it was not, or is long gone."""
        index = sequence - self._ring[0].sequence if self._ring else -1
        return time.monotonic() - self._published_at[index] if 0 <= index < len(self._published_at) else None

    def _keep_text(self) -> None:
        if self.preview is None:
            return
        preview, self.preview = self.preview, None
        if not preview.ours:
            return
        self.texts[preview.message_id] = (preview.attempt, preview.text().encode())
        while len(self.texts) > KEPT_TEXTS:
            del self.texts[next(iter(self.texts))]


class Feeds:
    """The feeds of this replica, and the poll behind their hints."""

    def __init__(self, store: EventLog, *, poll: float) -> None:
        """`poll` in seconds: how late others' events come without hints; with them, RARELY times as late at most."""
        self._store = store
        self._poll = poll
        self._feeds: dict[SessionKey, Feed] = {}
        self._ask_for = self.ask
        self.draining = False
        self.asked: set[SessionKey] = set()
        """Sessions with watchers who want the text of a turn that may run elsewhere, to be looked up."""
        self.asking = asyncio.Event()
        self.deaf = True
        """Others' events do not come by themselves."""

    @contextlib.contextmanager
    def attach(self, key: SessionKey) -> Iterator[Feed]:
        feed = self.enter(key)
        try:
            yield feed
        finally:
            self.leave(key, feed)

    def enter(self, key: SessionKey) -> Feed:
        """As `attach`, for who leaves in another place."""
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(self._ask_for, key)
        feed.watchers += 1
        return feed

    def leave(self, key: SessionKey, feed: Feed) -> None:
        feed.watchers -= 1
        if not feed.watchers:
            self._feeds.pop(key, None)

    @contextlib.contextmanager
    def waiting(self, key: SessionKey) -> Iterator["Waiting"]:
        """To be open before a turn is stored whose end is waited for."""
        with self.attach(key) as feed:
            turns = feed.know_turns()
            try:
                yield Waiting(feed, turns)
            finally:
                feed.forget_turns()

    def get(self, key: SessionKey) -> Feed | None:
        """The session's feed, if anybody is attached to it."""
        return self._feeds.get(key)

    def ask(self, key: SessionKey) -> None:
        self.asked.add(key)
        self.asking.set()

    def ask_all(self) -> None:
        """For every session whose text is watched."""
        for key, feed in self._feeds.items():
            if feed.text_watchers:
                self.ask(key)

    def publish(self, step: Changeset, committed: Committed, *, sent_at: float) -> None:
        """A step of ours is confirmed to be stored; it was first sent at `sent_at`, by `time.monotonic`."""
        feed = self._feeds.get(step.session_key)
        if feed is not None:
            if feed.known is not None:
                feed.known.learn(step, committed, sent_at=sent_at)
            if committed.events:
                feed.sent_at = max(feed.sent_at, sent_at)
            feed.publish(committed.events)

    def heard(self, key: SessionKey, last_seq: int) -> None:
        """Another replica may have stored events up to this number."""
        feed = self._feeds.get(key)
        if feed is not None:
            feed.heard(last_seq)

    def drain(self) -> None:
        """End every stream with a cursor."""
        self.draining = True
        for feed in self._feeds.values():
            feed.wake()

    async def until(self, key: SessionKey, look: Callable[[], Awaitable[T | None]], *, seconds: float) -> T | None:
        """What `look` finds, now or whenever the session's log has grown; None when the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with self.attach(key) as feed:
            while True:
                seen = feed.grown.fired
                found = await look()
                left = deadline - loop.time()
                if found is not None or left <= 0 or self.draining:
                    return found
                if feed.grown.fired == seen:
                    await either(feed.grown, left)

    async def run(self) -> None:
        """Ask for the heads of all watched sessions, again and again; rarely while hints come."""
        for turn in itertools.count(1):
            await asyncio.sleep(self._poll)
            if self.deaf or not turn % RARELY:
                await self.look()

    async def look(self) -> None:
        """Ask for the heads of all watched sessions, once."""
        watched = list(self._feeds)
        for start in range(0, len(watched), 500):
            await self._ask(watched[start : start + 500])

    async def _ask(self, keys: Sequence[SessionKey]) -> None:
        try:
            found = await self._store.last_seqs(keys)
        except ServiceUnavailable:
            logger.warning("the database does not answer; watchers wait")
            return
        except Exception:
            logger.exception("the last numbers cannot be read; watchers wait")
            return
        for key, last_seq in found.items():
            self.heard(key, last_seq)


class Waiting:
    """One who waits for turns of a session."""

    __slots__ = ("_feed", "_since", "_turns")

    def __init__(self, feed: Feed, turns: TurnCache) -> None:
        self._feed = feed
        self._turns = turns
        self._since = time.monotonic()

    def known(self, turn_id: str) -> CachedTurn | None:
        """The turn as it is, without asking; None: it must be read."""
        return self._turns.get(turn_id, since=self._since, until=self._feed.last_seq)
