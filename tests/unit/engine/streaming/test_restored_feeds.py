"""After the database was restored to an older state, no reader gets events of two histories of its log."""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import NOON, a_turn, an_event, new_id
from tests.contracts.stores import a_changeset, a_first_changeset, begin, committed, head_of
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.domain.cursor import StreamPosition, history_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import EVERYTHING, Batch, EventFilter
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.errors import CursorExpired
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import Committed, LogEnd, StoredEvent
from turnkeeper.telemetry.metrics import Metrics

CODEC = WireCodec()
KEY = SessionKey("default", "session")
TIMEOUT = 5.0


class Replica:
    """The streams of one replica, on a store in memory with a way back."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.restored_before = ""
        """The first read that no longer finds what came after the second event."""
        self._database = MemoryDatabase(now=lambda: NOON)
        self.store = MemoryStore(self._database, codec=CODEC, enter=self._enter, random=random.Random(0))
        self.key = SessionKey("default", "session")
        self.feeds = Feeds(self.store, poll=1)
        times = StreamTimes(keep_alive=60, rotation=600)
        metrics = Metrics(NoOpMeterProvider())
        self.watchers = Watchers(self.store, self.feeds, CODEC, metrics=metrics, times=times, rng=random.Random(1))

    async def _enter(self, method: str) -> None:
        self.calls.append(method)
        if method == self.restored_before:
            self.restore(2)

    async def store_messages(self, *words: str, here: bool = True) -> None:
        """Stores messages, each in a turn of its own; `here`: by this replica, so that its feeds get them at once."""
        for text in words:
            changeset = a_changeset(await head_of(self.store, self.key), an_event(text, turn_id=new_id("turn")))
            sent_at = time.monotonic()
            stored = await committed(self.store.commit(changeset))
            if here:
                self.feeds.publish(changeset, stored, sent_at=sent_at)

    def restore(self, length: int) -> None:
        """Forgets what came after the event of this number."""
        del self._database.sessions[self.key].log[length:]

    async def remake_session(self, *words: str) -> None:
        """Removes the session, and creates another one with its id and these messages."""
        del self._database.sessions[self.key]
        await begin(self.store, self.key)
        await self.store_messages(*words, here=False)

    def position(self, sequence: int) -> StreamPosition:
        logged = self._database.sessions[self.key].log[sequence - 1]
        return StreamPosition(sequence=sequence, history=history_of(logged.changeset_id))

    def end(self, length: int) -> LogEnd:
        """Returns the end of the log when it had so many events."""
        return LogEnd(length, self._database.sessions[self.key].log[length - 1].changeset_id)

    @property
    def feed(self) -> Feed:
        feed = self.feeds.get(self.key)
        assert feed is not None
        return feed

    @contextlib.contextmanager
    def watching(self) -> Iterator["Reader"]:
        with self.watchers.open(self.key) as watcher:
            yield Reader(watcher)


class Reader:
    """Reads a stream. Collects the texts of its messages."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.texts: list[str] = []

    async def begin(self, start: StreamPosition | None = None) -> "Reader":
        await self.watcher.begin(start or StreamPosition(), EVERYTHING)
        while not (await self.next()).caught_up:
            pass
        return self

    async def next(self) -> Batch:
        async with asyncio.timeout(TIMEOUT):
            batch = await self.watcher.next()
        assert batch is not None
        for payload in batch.events:
            event = CODEC.decode(StoredEvent(0, "message_received", "", payload))
            self.texts += [part.text for part in getattr(event.payload, "content", ())]
        return batch


@pytest.fixture
async def replica() -> Replica:
    replica = Replica()
    await begin(replica.store, replica.key)
    await replica.store_messages("one")
    return replica


async def test_an_idle_reader_of_a_log_that_is_shorter_now_is_told_by_the_next_poll(replica: Replica) -> None:
    with replica.watching() as reader:
        await reader.begin()
        await replica.store_messages("lost")
        await reader.next()
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        replica.restore(2)
        await replica.feeds.poll()
        with pytest.raises(CursorExpired) as raised:
            await waiting
        assert raised.value.metadata == {"oldest_sequence": "1", "head_sequence": "2"}


@pytest.mark.parametrize("new", [(), ("new",)], ids=["shorter", "as long"])
async def test_a_late_notification_of_the_lost_log_makes_no_position_right(
    replica: Replica, new: tuple[str, ...]
) -> None:
    """It comes after the poll that found the log restored, and before the reader has looked."""
    with replica.watching() as reader:
        await reader.begin()
        await replica.store_messages("lost")
        await reader.next()
        lost = reader.watcher.position.sequence
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        replica.restore(2)
        replica.feed.reset(replica.end(2))
        replica.feed.notify_grown(lost)
        await replica.store_messages(*new, here=False)
        with pytest.raises(CursorExpired):
            await waiting


async def test_a_reader_that_still_finds_its_events_behind_the_end_of_the_log_is_told(replica: Replica) -> None:
    """Who restores a database does so collection by collection: the events may come after the log's new end."""
    with replica.watching() as reader:
        await reader.begin()
        await replica.store_messages("lost")
        await reader.next()
        replica.feed.reset(replica.end(2))
        replica.restored_before = "holds"
        with pytest.raises(CursorExpired):
            await reader.next()


async def test_a_reader_that_wants_deltas_seldom_is_told_no_later(replica: Replica) -> None:
    with replica.watchers.open(replica.key) as watcher:
        await watcher.begin(replica.position(2), EventFilter(previews=True), delta_interval=2 * TIMEOUT)
        await watcher.next()
        await replica.store_messages("lost")
        await watcher.next()
        replica.feed.begin_preview(turn_id="t", message_id="m", attempt=1, started_after=3).append("text")
        await watcher.next()
        waiting = asyncio.create_task(watcher.next())
        await asyncio.sleep(0)
        replica.restore(2)
        await replica.feeds.poll()
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(CursorExpired):
                await waiting


@pytest.mark.parametrize("lost_here", [True, False])
@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("new", [("new",), ("new", "newer")])
async def test_a_reader_of_lost_events_gets_none_of_the_new_history(
    replica: Replica, lost_here: bool, here: bool, new: tuple[str, ...]
) -> None:
    """The log has grown again before anything noticed that it had been shorter."""
    with replica.watching() as reader:
        await reader.begin()
        await replica.store_messages("lost", here=lost_here)
        await replica.feeds.poll()
        await reader.next()
        replica.restore(2)
        await replica.store_messages(*new, here=here)
        await replica.feeds.poll()
        with pytest.raises(CursorExpired):
            await reader.next()
        assert reader.texts == ["one", "lost"]


@pytest.mark.parametrize("here", [True, False])
async def test_a_reader_of_the_common_beginning_goes_on(replica: Replica, here: bool) -> None:
    with replica.watching() as reader, replica.watching() as ahead:
        await reader.begin()
        await ahead.begin()
        await replica.store_messages("lost")
        await ahead.next()
        replica.restore(2)
        await replica.feeds.poll()
        await replica.store_messages("new", here=here)
        await replica.feeds.poll()
        await reader.next()
        assert reader.texts == ["one", "new"]
        with pytest.raises(CursorExpired):
            await ahead.next()


@pytest.mark.parametrize("new", [(), ("new",), ("new", "newer")])
@pytest.mark.parametrize("stays", [True, False], ids=["watched", "unwatched"])
async def test_a_position_of_a_lost_history_is_refused(replica: Replica, new: tuple[str, ...], stays: bool) -> None:
    """`stays`: another reader keeps the feed with the lost events."""
    with contextlib.ExitStack() as stack:
        if stays:
            stack.enter_context(replica.feeds.attach(replica.key))
        with replica.watching() as reader:
            await reader.begin()
            await replica.store_messages("lost")
            await reader.next()
            position = reader.watcher.position
        replica.restore(2)
        await replica.store_messages(*new, here=False)
        with replica.watching() as again, pytest.raises(CursorExpired):
            await again.begin(position)
        with replica.watching() as again:
            await again.begin(replica.position(2))
            assert again.texts == list(new)


@pytest.mark.parametrize("new", [(), ("new",), ("new", "newer")])
async def test_the_reader_of_a_deleted_session_is_told_that_another_one_has_its_id(
    replica: Replica, new: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """It was purged, and made again under its id: no database was restored."""
    with replica.watching() as reader:
        await reader.begin()
        await replica.remake_session(*new)
        await replica.feeds.poll()
        with pytest.raises(CursorExpired, match="or the session was deleted and another one has its session_id now"):
            await reader.next()
        with replica.watching() as again, pytest.raises(CursorExpired, match="another one has its session_id now"):
            await again.begin(reader.watcher.position)
    assert all("or another session has the id now" in message for message in caplog.messages)


async def test_a_new_reader_gets_the_restored_log_though_the_feed_holds_the_lost_one(replica: Replica) -> None:
    with replica.watching() as reader:
        await reader.begin()
        await replica.store_messages("lost", "lost too")
        await reader.next()
        replica.restore(2)
        with replica.watching() as new:
            await new.begin()
            await replica.store_messages("new")
            await new.next()
            assert new.texts == ["one", "new"]
        with pytest.raises(CursorExpired):
            await reader.next()
        assert reader.texts == ["one", "lost", "lost too"]


async def test_what_is_as_it_was_costs_no_comparison(replica: Replica) -> None:
    with replica.watching() as reader:
        await reader.begin()
        await replica.store_messages("two", "three")
        await reader.next()
        await replica.feeds.poll()
        await replica.store_messages("four", here=False)
        await replica.feeds.poll()
        await reader.next()
        with replica.watching() as again:
            await again.begin(reader.watcher.position)
    assert reader.texts == ["one", "two", "three", "four"]
    assert "holds" not in replica.calls


def stored(sequence: int, changeset_id: str) -> StoredEvent:
    return StoredEvent(sequence, "tool_called", "t", b"x", changeset_id)


def test_a_ring_has_one_history() -> None:
    feed = Feed()
    feed.publish([stored(3, "a"), stored(4, "a")], after=LogEnd(2, "of-before"))
    feed.publish([stored(5, "b")], after=LogEnd(4, "a"))
    assert [feed.history(number) for number in range(1, 7)] == ["", "f-before", "a", "a", "b", ""]
    feed.publish([stored(5, "b")], after=LogEnd(4, "a"))  # confirmed twice
    assert len(feed.since(2) or ()) == 3
    feed.publish([stored(5, "other")], after=LogEnd(4, "a"))
    assert feed.since(4) == [stored(5, "other")]
    assert feed.since(3) is None
    feed.publish([stored(6, "c")], after=LogEnd(5, "a third one"))
    assert feed.since(5) == [stored(6, "c")]
    assert feed.since(4) is None
    assert not feed.continues(StreamPosition(sequence=5, history="other"))
    assert feed.continues(StreamPosition(sequence=5, history="hird one"))


def test_own_events_wake_those_who_wait_though_a_lost_log_was_longer() -> None:
    feed = Feed()
    feed.notify_grown(5, "lost")
    for sequence, changeset_id, before in ((4, "a", "0"), (5, "b", "a")):
        counts = feed.grown.count, feed.changed.count
        feed.publish([stored(sequence, changeset_id)], after=LogEnd(sequence - 1, before))
        assert feed.grown.count > counts[0]
        assert feed.changed.count > counts[1]
    assert feed.end == LogEnd(5, "b")
    assert feed.since(3) == [stored(4, "a"), stored(5, "b")]


def test_a_ring_of_a_lost_log_is_not_read_once_another_end_is_known() -> None:
    feed = Feed()
    feed.publish([stored(3, "a"), stored(4, "lost")], after=LogEnd(2, "0"))
    feed.notify_grown(4, "lost")
    assert feed.since(2)
    count = feed.grown.count
    feed.notify_grown(4, "other")
    assert feed.grown.count > count
    assert feed.since(2) is None
    assert feed.since(4) == []


@pytest.mark.parametrize("stored_here", [True, False])
def test_nothing_of_a_lost_log_is_kept_once_another_end_is_known(*, stored_here: bool) -> None:
    feed = Feed()
    turns = feed.cache_turns()
    feed.begin_preview(turn_id="t", message_id="m", attempt=1).append("lost")
    feed.publish([StoredEvent(3, "message_completed", "t", b"x", "lost")], after=LogEnd(2, "0"))
    lost = a_first_changeset(KEY, last_seq=3, turns=(a_turn(KEY, id="t"),))
    turns.add(lost, Committed(last_seq=4, fence=1, events=()), sent_at=1.0)
    feed.notify_grown(4, "lost too")
    feed.begin_preview(turn_id="t", message_id="n", attempt=1).append("lost")
    assert turns.get("t", since=0, until=4)
    if stored_here:
        feed.publish([stored(4, "other")], after=LogEnd(3, "lost"))
    else:
        feed.notify_grown(4, "other")
    assert (feed.end, feed.preview, feed.texts, feed.pages.is_empty) == (LogEnd(4, "other"), None, {}, True)
    assert turns.get("t", since=0, until=4) is None
    assert feed.since(3) == ([stored(4, "other")] if stored_here else None)


def test_changesets_that_are_confirmed_in_another_order_are_of_one_history() -> None:
    feed = Feed()
    feed.publish([stored(4, "b")], after=LogEnd(3, "a"))
    feed.publish([stored(3, "a")], after=LogEnd(2, "0"))
    assert feed.since(3) == [stored(4, "b")]
    assert feed.last_seq == 4


def test_a_reset_feed_holds_nothing_of_the_lost_log() -> None:
    feed = Feed()
    feed.cache_turns()
    preview = feed.begin_preview(turn_id="t", message_id="m", attempt=1)
    preview.append("lost")
    feed.publish([StoredEvent(3, "message_completed", "t", b"x", "a")], after=LogEnd(2, "0"))
    feed.begin_preview(turn_id="t", message_id="n", attempt=1).append("lost")
    count = feed.changed.count
    feed.reset(LogEnd(1, "first"))
    assert (feed.end, feed.preview, feed.texts) == (LogEnd(1, "first"), None, {})
    assert feed.since(1) == []
    assert feed.since(0) is None
    assert feed.changed.count > count


async def test_events_whose_numbers_a_lost_log_had_are_no_less_news() -> None:
    """A notification of the lost log may come after all that was kept of it is forgotten."""
    feed = Feed()
    feed.reset(LogEnd(6, "kept"))
    feed.notify_grown(8)
    waiting = feed.grown.subscribe()
    feed.publish([stored(7, "new"), stored(8, "new")], after=LogEnd(6, "kept"))
    assert waiting.done()
    assert feed.since(6) == [stored(7, "new"), stored(8, "new")]
