"""One reader's way: what needs no look into the log, and what does."""

import asyncio
import random
import time
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.unit.engine.streaming.test_turn_cache import KEY, committed, running, step
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.feed import Feeds
from turnkeeper.engine.streaming.watcher import Watcher, Watchers
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.telemetry.metrics import Metrics

STEP = (step(running(), after=4), committed("t", after=4))
MOMENT = 5.0


class Asked(Exception):
    pass


class Silent:
    """A store that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise Asked(name)


def follower(*, heartbeat: float = 60.0) -> tuple[Watchers, Feeds]:
    store: Any = Silent()
    feeds = Feeds(store, poll=1)
    metrics = Metrics(NoOpMeterProvider())
    made = Watchers(store, feeds, WireCodec(), metrics=metrics, heartbeat=heartbeat, rotation=600, rng=random.Random(1))
    return made, feeds


async def following(reading: Watcher, feeds: Feeds) -> Batch:
    """It has caught up with the first step."""
    feeds.publish(*STEP, sent_at=time.monotonic())
    await reading.begin(StreamPosition(sequence=4, live=True), EventFilter())
    batch = await reading.next()
    assert batch is not None
    return batch


async def test_who_began_before_the_step_needs_no_look_into_the_log() -> None:
    made, feeds = follower()
    with made.open(KEY, knows_turns=True) as reading:
        batch = await following(reading, feeds)
        assert (batch.events, batch.caught_up, batch.place) == ([b"x"], True, StreamPosition(sequence=5, live=True))
        assert reading.known("t") is not None


async def test_a_step_that_was_sent_before_is_no_news() -> None:
    made, feeds = follower()
    with feeds.attach(KEY):
        sent_at = time.monotonic()
        with made.open(KEY) as reading:
            feeds.publish(*STEP, sent_at=sent_at - 1)
            with pytest.raises(Asked):
                await reading.begin(StreamPosition(sequence=4, live=True), EventFilter())


async def test_a_place_beyond_what_was_told_is_looked_up() -> None:
    made, feeds = follower()
    with made.open(KEY) as reading:
        feeds.publish(*STEP, sent_at=time.monotonic())
        with pytest.raises(Asked):
            await reading.begin(StreamPosition(sequence=6), EventFilter())
    with made.open(KEY) as reading:
        feeds.publish(*STEP, sent_at=time.monotonic())
        with pytest.raises(Asked):
            await reading.begin(StreamPosition(sequence=3), EventFilter())


async def test_one_that_leaves_takes_no_other_with_it_and_leaves_nothing() -> None:
    made, feeds = follower()
    with made.open(KEY) as first, made.open(KEY) as second:
        await following(first, feeds)
        await second.begin(StreamPosition(sequence=5, live=True), EventFilter())
        await second.next()
        leaving, staying = asyncio.create_task(first.next()), asyncio.create_task(second.next())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        feeds.publish(step(running(), after=5), committed("t", after=5), sent_at=time.monotonic())
        batch = await asyncio.wait_for(staying, MOMENT)
        assert batch is not None
        assert batch.place.sequence == 6
    assert feeds.get(KEY) is None


async def test_a_reader_that_hears_nothing_is_told_so() -> None:
    made, feeds = follower(heartbeat=0.01)
    with made.open(KEY) as reading:
        before = await following(reading, feeds)
        for _ in range(2):
            batch = await asyncio.wait_for(reading.next(), MOMENT)
            assert batch is not None
            assert (batch.events, batch.caught_up, batch.place) == ([], False, before.place)


async def test_watchers_at_one_place_are_given_the_same_response() -> None:
    made, feeds = follower()
    with made.open(KEY) as first, made.open(KEY) as second, made.open(KEY) as third:
        await following(first, feeds)
        for other in (second, third):
            await other.begin(StreamPosition(sequence=5, live=True), EventFilter())
            await other.next()
        feeds.publish(step(running(), after=5), committed("t", after=5), sent_at=time.monotonic())
        one, other_one = await first.next(), await second.next()
        assert one is other_one
        feeds.publish(step(running(), after=6), committed("t", after=6), sent_at=time.monotonic())
        late = await third.next()
        assert late is not None
        assert len(late.events) == 2
