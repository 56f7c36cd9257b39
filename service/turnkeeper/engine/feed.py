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
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from turnkeeper.engine.preview import Preview
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import Store
from turnkeeper.store.step import StoredEvent

log = logging.getLogger(__name__)
T = TypeVar("T")

RING_EVENTS = 256
RING_BYTES = 1 << 20
KEPT_TEXTS = 4
RARELY = 10
"""One poll in so many is made while hints come: it finds what a hint that got lost would have told."""
RESETS = frozenset(
    {"message_completed", "attempt_failed", "attempt_superseded", "turn_failed", "turn_retried", "turn_cancelled"}
)
"""After these the text that their turn was writing is whole, or does not count."""

Key = tuple[str, str]
"""(tenant, session)."""


class Signal:
    """Wakes everybody who waits for the next change. Its futures are shared: wait for them, never cancel them."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def next(self) -> asyncio.Future[None]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    def fire(self) -> None:
        if self._next is not None:
            self._next.set_result(None)
            self._next = None


class Feed:
    """One session's live tail. It lives while somebody watches it or a turn of it runs here."""

    def __init__(self, ask: Callable[[], None] = lambda: None) -> None:
        """`ask`: have it looked up what other replicas write in this session."""
        self.ask = ask
        self.watchers = 0
        self.text_watchers = 0
        self.last_seq = 0
        self.preview: Preview | None = None
        self.no_longer = ("", 0)
        """The last message and attempt of another replica's that was looked up: it is `preview`, or does not count."""
        self.texts: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        """Whole texts of the last messages, by message id: attempt and UTF-8, for watchers that lag behind."""
        self._ring: deque[StoredEvent] = deque()
        self._ring_bytes = 0
        self._published_at: dict[int, float] = {}
        self._changed = Signal()
        self._grown = Signal()

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

    @contextlib.contextmanager
    def showing(self, wanted: bool) -> Iterator[None]:
        """While somebody watches the text; also that of a turn that runs elsewhere."""
        self.text_watchers += wanted
        if wanted and (self.preview is None or not self.preview.ours):
            self.ask()
        try:
            yield
        finally:
            self.text_watchers -= wanted

    def drop_preview(self) -> None:
        """The text that was being written does not count."""
        self.preview = None
        self.notify()

    def publish(self, events: Sequence[StoredEvent]) -> None:
        """Events that are confirmed to be stored, in order."""
        for event in events:
            if self._ring and event.sequence <= self._ring[-1].sequence:
                continue
            if self._ring and event.sequence != self._ring[-1].sequence + 1:
                self._ring.clear()
                self._published_at.clear()
                self._ring_bytes = 0
            self._ring.append(event)
            self._published_at[event.sequence] = time.monotonic()
            self._ring_bytes += len(event.payload)
            if event.kind == "message_completed":
                self._keep_text()
        while len(self._ring) > RING_EVENTS or self._ring_bytes > RING_BYTES:
            oldest = self._ring.popleft()
            self._ring_bytes -= len(oldest.payload)
            self._published_at.pop(oldest.sequence, None)
        if events:
            self.heard(events[-1].sequence)

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
            self._grown.fire()
            self.notify()

    def notify(self) -> None:
        self._changed.fire()

    def wake(self) -> None:
        """Let every watcher look again, though nothing came."""
        self._grown.fire()
        self._changed.fire()

    def changed(self) -> asyncio.Future[None]:
        """Done at the next event or piece of text. Take it before you look, or a change in between is missed."""
        return self._changed.next()

    def grown(self) -> asyncio.Future[None]:
        """Done at the next durable event."""
        return self._grown.next()

    def since(self, sequence: int) -> list[StoredEvent] | None:
        """What the ring holds after this number; None when it does not reach back that far."""
        if sequence >= self.last_seq:
            return []
        if not self._ring or self._ring[0].sequence > sequence + 1 or self._ring[-1].sequence < self.last_seq:
            return None
        first = sequence + 1 - self._ring[0].sequence
        return [self._ring[index] for index in range(first, len(self._ring))]

    def lag(self, sequence: int) -> float | None:
        """Seconds since this event was published here; None when it was not, or is long gone."""
        at = self._published_at.get(sequence)
        return None if at is None else time.monotonic() - at

    def _keep_text(self) -> None:
        if self.preview is None:
            return
        preview, self.preview = self.preview, None
        if not preview.ours:
            return
        self.texts[preview.message_id] = (preview.attempt, preview.text().encode())
        while len(self.texts) > KEPT_TEXTS:
            self.texts.popitem(last=False)


class Feeds:
    """The feeds of this replica, and the poll behind their hints."""

    def __init__(self, store: Store, *, poll: float) -> None:
        """`poll` in seconds: how late others' events come without hints; with them, RARELY times as late at most."""
        self._store = store
        self._poll = poll
        self._feeds: dict[Key, Feed] = {}
        self.draining = False
        self.asked: set[Key] = set()
        """Sessions with watchers who want the text of a turn that may run elsewhere, to be looked up."""
        self.asking = asyncio.Event()
        self.deaf = True
        """Others' events do not come by themselves."""

    @contextlib.contextmanager
    def attach(self, key: Key) -> Iterator[Feed]:
        feed = self._feeds.setdefault(key, Feed(partial(self.ask, key)))
        feed.watchers += 1
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                self._feeds.pop(key, None)

    def get(self, key: Key) -> Feed | None:
        """The session's feed, if anybody is attached to it."""
        return self._feeds.get(key)

    def ask(self, key: Key) -> None:
        self.asked.add(key)
        self.asking.set()

    def ask_all(self) -> None:
        """For every session whose text is watched."""
        for key, feed in self._feeds.items():
            if feed.text_watchers:
                self.ask(key)

    def publish(self, key: Key, events: Sequence[StoredEvent]) -> None:
        feed = self._feeds.get(key)
        if feed is not None:
            feed.publish(events)

    def heard(self, key: Key, last_seq: int) -> None:
        """Another replica may have stored events up to this number."""
        feed = self._feeds.get(key)
        if feed is not None:
            feed.heard(last_seq)

    def drain(self) -> None:
        """End every stream with a cursor."""
        self.draining = True
        for feed in self._feeds.values():
            feed.wake()

    async def until(self, key: Key, look: Callable[[], Awaitable[T | None]], *, seconds: float) -> T | None:
        """What `look` finds, now or whenever the session's log has grown; None when the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with self.attach(key) as feed:
            while True:
                grown = feed.grown()
                found = await look()
                left = deadline - loop.time()
                if found is not None or left <= 0 or self.draining:
                    return found
                await asyncio.wait([grown], timeout=left)

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

    async def _ask(self, keys: Sequence[Key]) -> None:
        try:
            found = await self._store.last_seqs(keys)
        except ServiceUnavailable:
            log.warning("the database does not answer; watchers wait")
            return
        except Exception:
            log.exception("the last numbers cannot be read; watchers wait")
            return
        for key, last_seq in found.items():
            self.heard(key, last_seq)
