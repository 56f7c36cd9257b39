"""Readers of one log at the same time: one look into it for all, and each is told the same as if it were alone."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import NOON
from tests.unit.engine.streaming.test_turn_cache import KEY
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import BATCH_EVENTS, EVERYTHING, Batch, EventFilter
from turnkeeper.engine.streaming.feed import Feeds
from turnkeeper.engine.streaming.log_reads import LogPage
from turnkeeper.engine.streaming.watcher import Watcher, Watchers
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import Cancel, Head, StoredEvent
from turnkeeper.telemetry.metrics import Metrics

LENGTH = 3 * BATCH_EVENTS + 5
HEAD = Head(
    session_id="s",
    tenant=KEY[0],
    last_seq=LENGTH,
    fence=1,
    owner="",
    owned=False,
    active_turn="",
    queue=(),
    cancel=Cancel(),
    lapses=0,
    now=NOON,
)
MOMENT = 5.0
ROUNDS = 9
"""Of the event loop that a look takes at least: whoever is ready asks meanwhile."""


class Log:
    """It answers when it is let, or `fails` once."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.open = asyncio.Event()
        self.fails = False

    async def events(self, *_: str, after: int, limit: int) -> Sequence[StoredEvent]:
        self.asked.append((after, limit))
        await self.open.wait()
        for _round in range(ROUNDS):
            await asyncio.sleep(0)
        if self.fails:
            self.fails = False
            raise ServiceUnavailable
        return [event(number) for number in range(after + 1, LENGTH + 1)[:limit]]


def event(number: int) -> StoredEvent:
    return StoredEvent(number, "tool_called" if number % 2 else "tool_returned", "t", b"%d" % number)


def feeds_of(log: Log) -> tuple[Watchers, Feeds]:
    store: Any = log
    feeds = Feeds(store, poll=1)
    metrics = Metrics(NoOpMeterProvider())
    made = Watchers(store, feeds, WireCodec(), metrics=metrics, heartbeat=60, rotation=600, rng=random.Random(1))
    return made, feeds


async def everything(reading: Watcher) -> list[Batch]:
    """All that it gives until it has caught up."""
    batches: list[Batch] = []
    async with asyncio.timeout(MOMENT):
        while not batches or not batches[-1].caught_up:
            batch = await reading.next()
            assert batch is not None
            batches.append(batch)
    return batches


def said(batches: list[Batch]) -> list[int]:
    return [int(each) for batch in batches for each in batch.events]


async def test_who_asks_while_it_is_read_gets_the_same_page_and_the_same_responses() -> None:
    log = Log()
    made, feeds = feeds_of(log)
    with made.open(KEY) as one, made.open(KEY) as other:
        for reading in (one, other):
            await reading.begin(StreamPosition(), EVERYTHING, head=HEAD)
        reads = [asyncio.create_task(everything(each)) for each in (one, other)]
        await asyncio.sleep(0)
        log.open.set()
        first, second = await asyncio.gather(*reads)
        feed = feeds.get(KEY)
        assert feed is not None
        assert feed.flight is None, "nothing is kept"
    assert said(first) == said(second) == list(range(1, LENGTH + 1))
    assert len(set(log.asked)) == len(log.asked), "each page is read once"
    assert [mine is yours for mine, yours in zip(first, second, strict=True)] == [True] * (len(first) - 1) + [False]
    assert [batch.caught_up for batch in first] == [batch.caught_up for batch in second]


async def test_each_is_told_what_it_wants() -> None:
    log = Log()
    made, _ = feeds_of(log)
    with made.open(KEY) as one, made.open(KEY) as other, made.open(KEY) as third:
        returned = EventFilter(kinds=frozenset({"tool_returned"}))
        for reading, wanted in ((one, EVERYTHING), (other, returned), (third, EventFilter(turn_id="another"))):
            await reading.begin(StreamPosition(), wanted, head=HEAD)
        reads = [asyncio.create_task(everything(each)) for each in (one, other, third)]
        await asyncio.sleep(0)
        log.open.set()
        found = await asyncio.gather(*reads)
    numbers = list(range(1, LENGTH + 1))
    assert [said(each) for each in found] == [numbers, numbers[1::2], []]
    assert {each[-1].place for each in found} == {StreamPosition(sequence=LENGTH, live=True)}


async def test_who_has_heard_of_something_newer_reads_for_itself() -> None:
    log = Log()
    made, feeds = feeds_of(log)
    with made.open(KEY) as one, made.open(KEY) as other:
        for reading in (one, other):
            await reading.begin(StreamPosition(), EVERYTHING, head=HEAD)
        reads = [asyncio.create_task(one.next())]
        await asyncio.sleep(0)
        feeds.heard(KEY, LENGTH + 1)
        reads.append(asyncio.create_task(other.next()))
        await asyncio.sleep(0)
        assert log.asked == [(0, BATCH_EVENTS)] * 2
        log.open.set()
        await asyncio.gather(*reads)


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "leaves"])
async def test_a_reader_that_fails_or_leaves_takes_no_other_with_it(*, fails: bool) -> None:
    log = Log()
    made, feeds = feeds_of(log)
    with made.open(KEY) as one, made.open(KEY) as other:
        for reading in (one, other):
            await reading.begin(StreamPosition(), EVERYTHING, head=HEAD)
        leaving, staying = asyncio.create_task(one.next()), asyncio.create_task(everything(other))
        await asyncio.sleep(0)
        log.fails = fails
        if not fails:
            leaving.cancel()
        log.open.set()
        await asyncio.wait([leaving])
        assert leaving.cancelled() or isinstance(leaving.exception(), ServiceUnavailable)
        assert said(await staying) == list(range(1, LENGTH + 1))
        feed = feeds.get(KEY)
        assert feed is not None
        assert feed.flight is None


async def test_one_that_waits_and_leaves_takes_no_other_with_it() -> None:
    log = Log()
    made, _ = feeds_of(log)
    with made.open(KEY) as one, made.open(KEY) as other, made.open(KEY) as third:
        for reading in (one, other, third):
            await reading.begin(StreamPosition(), EVERYTHING, head=HEAD)
        reads = [asyncio.create_task(each.next()) for each in (one, other, third)]
        await asyncio.sleep(0)
        reads[1].cancel()
        await asyncio.wait([reads[1]])
        log.open.set()
        batches = [await asyncio.wait_for(each, MOMENT) for each in (reads[0], reads[2])]
        assert batches[0] is batches[1]
        assert log.asked == [(0, BATCH_EVENTS)]


@pytest.mark.parametrize("gap", [1, 2, 7])
def test_a_page_ends_before_a_gap(gap: int) -> None:
    page = LogPage(10, [event(number) for number in range(11, 20) if number != 10 + gap])
    assert [each.sequence for each in page.events] == list(range(11, 10 + gap))
    assert page.last == 9 + gap
    assert [each.sequence for each in page.beyond(11)] == list(range(12, 10 + gap))
