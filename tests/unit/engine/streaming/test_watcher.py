"""One watcher's way: what needs no read of the log, and what does."""

import asyncio
import random
import time
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint

from tests.unit.engine.streaming.test_turn_cache import KEY, a_changeset, committed, running
from tests.unit.telemetry.calls import Meters
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import StoredEvent
from turnkeeper.telemetry.metrics import Metrics

COMMIT = (a_changeset(running(), after=4), committed("t", after=4))
TIMEOUT = 5.0


class StoreUsed(Exception):
    pass


class UnusedStore:
    """A store that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise StoreUsed(name)


def watchers_and_feeds(*, keep_alive: float = 60.0, metrics: Metrics | None = None) -> tuple[Watchers, Feeds]:
    store: Any = UnusedStore()
    times = StreamTimes(keep_alive=keep_alive, rotation=600)
    feeds = Feeds(store, poll=1)
    metrics = metrics or Metrics(NoOpMeterProvider())
    watchers = Watchers(store, feeds, WireCodec(), metrics=metrics, times=times, rng=random.Random(1))
    return watchers, feeds


async def caught_up(watcher: Watcher, feeds: Feeds) -> Batch:
    """Lets the watcher catch up with the first changeset; returns its batch."""
    feeds.publish(*COMMIT, sent_at=time.monotonic())
    await watcher.begin(StreamPosition(sequence=4, live=True), EventFilter())
    batch = await watcher.next()
    assert batch is not None
    return batch


async def test_a_watcher_that_began_before_the_changeset_needs_no_read() -> None:
    watchers, feeds = watchers_and_feeds()
    with watchers.open(KEY, caches_turns=True) as watcher:
        batch = await caught_up(watcher, feeds)
        assert (batch.events, batch.caught_up, batch.position) == ([b"x"], True, StreamPosition(sequence=5, live=True))
        assert watcher.cached_turn("t") is not None


async def test_a_changeset_that_was_sent_before_does_not_spare_the_read() -> None:
    watchers, feeds = watchers_and_feeds()
    with feeds.attach(KEY):
        sent_at = time.monotonic()
        with watchers.open(KEY) as watcher:
            feeds.publish(*COMMIT, sent_at=sent_at - 1)
            with pytest.raises(StoreUsed):
                await watcher.begin(StreamPosition(sequence=4, live=True), EventFilter())


async def test_a_position_that_the_feed_does_not_reach_is_read() -> None:
    watchers, feeds = watchers_and_feeds()
    with watchers.open(KEY) as watcher:
        feeds.publish(*COMMIT, sent_at=time.monotonic())
        with pytest.raises(StoreUsed):
            await watcher.begin(StreamPosition(sequence=6), EventFilter())
    with watchers.open(KEY) as watcher:
        feeds.publish(*COMMIT, sent_at=time.monotonic())
        with pytest.raises(StoreUsed):
            await watcher.begin(StreamPosition(sequence=3), EventFilter())


async def test_a_watcher_that_leaves_disturbs_no_other_and_leaves_nothing() -> None:
    watchers, feeds = watchers_and_feeds()
    with watchers.open(KEY) as first, watchers.open(KEY) as second:
        await caught_up(first, feeds)
        await second.begin(StreamPosition(sequence=5, live=True), EventFilter())
        await second.next()
        leaving, staying = asyncio.create_task(first.next()), asyncio.create_task(second.next())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        feeds.publish(a_changeset(running(), after=5), committed("t", after=5), sent_at=time.monotonic())
        batch = await asyncio.wait_for(staying, TIMEOUT)
        assert batch is not None
        assert batch.position.sequence == 6
    assert feeds.get(KEY) is None


async def test_a_watcher_without_events_gets_keep_alives() -> None:
    watchers, feeds = watchers_and_feeds(keep_alive=0.01)
    with watchers.open(KEY) as watcher:
        before = await caught_up(watcher, feeds)
        for _ in range(2):
            batch = await asyncio.wait_for(watcher.next(), TIMEOUT)
            assert batch is not None
            assert (batch.events, batch.caught_up, batch.position) == ([], False, before.position)


async def test_an_event_is_counted_as_delivered_once_whatever_keep_alives_follow() -> None:
    meters = Meters()
    watchers, feeds = watchers_and_feeds(keep_alive=0.01, metrics=meters.metrics)
    with watchers.open(KEY) as watcher:
        await caught_up(watcher, feeds)
        feeds.publish(a_changeset(running(), after=5), committed("t", after=5), sent_at=time.monotonic())
        for _ in range(4):
            await asyncio.wait_for(watcher.next(), TIMEOUT)
    (point,) = meters.read()["turnkeeper.event.delivery_lag"].data.data_points
    assert isinstance(point, HistogramDataPoint)
    assert point.count == 2, "the one that it began with, and the new one"


async def test_watchers_at_one_position_get_the_same_response() -> None:
    watchers, feeds = watchers_and_feeds()
    with watchers.open(KEY) as first, watchers.open(KEY) as second, watchers.open(KEY) as third:
        await caught_up(first, feeds)
        for other in (second, third):
            await other.begin(StreamPosition(sequence=5, live=True), EventFilter())
            await other.next()
        feeds.publish(a_changeset(running(), after=5), committed("t", after=5), sent_at=time.monotonic())
        one, other_one = await first.next(), await second.next()
        assert one is other_one
        feeds.publish(a_changeset(running(), after=6), committed("t", after=6), sent_at=time.monotonic())
        late = await third.next()
        assert late is not None
        assert len(late.events) == 2


class CountingStore(UnusedStore):
    """Counts how often the session is read."""

    def __init__(self) -> None:
        self.reads = 0

    async def session(self, key: SessionKey) -> tuple[Any, Any]:
        self.reads += 1
        return key, key


async def test_whether_the_session_is_deleted_is_looked_up_once_after_a_change_of_it() -> None:
    watchers, feeds = watchers_and_feeds()
    store: Any = CountingStore()
    watchers.store = store
    with watchers.open(KEY) as watcher:
        await caught_up(watcher, feeds)
        feed = feeds.get(KEY)
        assert feed is not None
        feed.publish([StoredEvent(6, "session_updated", "", b"x")], after=feed.end)
        await watcher.next()
        waiting = asyncio.create_task(watcher.next())
        for _ in range(3):
            await asyncio.sleep(0)
            feed.notify_all()
        assert store.reads == 1
        waiting.cancel()
        await asyncio.wait([waiting])
