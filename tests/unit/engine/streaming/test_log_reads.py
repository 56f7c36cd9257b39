"""Watchers that read one log at the same time: one read for all, and each gets the same as if it were alone."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import a_head
from tests.unit.engine.streaming.test_turn_cache import KEY
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import BATCH_EVENTS, EVERYTHING, Batch, EventFilter
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.log_reads import PAGE_MOST, LogPage, PageRequest, SharedPages, SharedRead
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import LogEnd, StoredEvent
from turnkeeper.telemetry.metrics import Metrics

LENGTH = 3 * BATCH_EVENTS + 5
HEAD = a_head(KEY, last_seq=LENGTH)
TIMES = StreamTimes(keep_alive=60, rotation=600)
TIMEOUT = 5.0
ROUNDS = 9
"""Rounds of the event loop that a read takes at least, so that every watcher that is ready joins it."""


class Log:
    """A log that answers once it is `open`, or `fails` once."""

    def __init__(self, length: int = LENGTH) -> None:
        self.length = length
        self.reads: list[tuple[int, int]] = []
        self.open = asyncio.Event()
        self.fails = False

    async def events(self, *_: str, after: int, limit: int) -> Sequence[StoredEvent]:
        self.reads.append((after, limit))
        await self.open.wait()
        for _round in range(ROUNDS):
            await asyncio.sleep(0)
        if self.fails:
            self.fails = False
            raise ServiceUnavailable
        return [event(number) for number in range(after + 1, self.length + 1)[:limit]]


def event(number: int) -> StoredEvent:
    return StoredEvent(number, "tool_called" if number % 2 else "tool_returned", "t", b"%d" % number)


def feeds_of(log: Log) -> tuple[Watchers, Feeds]:
    store: Any = log
    feeds = Feeds(store, poll=1)
    metrics = Metrics(NoOpMeterProvider())
    watchers = Watchers(store, feeds, WireCodec(), metrics=metrics, times=TIMES, rng=random.Random(1))
    return watchers, feeds


async def everything(watcher: Watcher) -> list[Batch]:
    """Returns the watcher's batches until it has caught up."""
    batches: list[Batch] = []
    async with asyncio.timeout(TIMEOUT):
        while not batches or not batches[-1].caught_up:
            batch = await watcher.next()
            assert batch is not None
            batches.append(batch)
    return batches


def numbers(batches: list[Batch]) -> list[int]:
    return [int(event) for batch in batches for event in batch.events]


async def test_a_watcher_that_joins_a_read_gets_the_same_page_and_the_same_responses() -> None:
    log = Log()
    watchers, feeds = feeds_of(log)
    with watchers.open(KEY) as one, watchers.open(KEY) as other:
        for watcher in (one, other):
            await watcher.begin(StreamPosition(), EVERYTHING, head=HEAD)
        reads = [asyncio.create_task(everything(watcher)) for watcher in (one, other)]
        await asyncio.sleep(0)
        log.open.set()
        first, second = await asyncio.gather(*reads)
        feed = feeds.get(KEY)
        assert feed is not None
        assert feed.pages.is_empty, "nothing is kept"
    assert numbers(first) == numbers(second) == list(range(1, LENGTH + 1))
    assert len(set(log.reads)) == len(log.reads), "each page is read once"
    assert [mine is yours for mine, yours in zip(first, second, strict=True)] == [True] * (len(first) - 1) + [False]
    assert [batch.caught_up for batch in first] == [batch.caught_up for batch in second]


async def test_each_watcher_gets_what_its_filter_wants() -> None:
    log = Log()
    watchers, _ = feeds_of(log)
    with watchers.open(KEY) as one, watchers.open(KEY) as other, watchers.open(KEY) as third:
        returned = EventFilter(kinds=frozenset({"tool_returned"}))
        for watcher, event_filter in ((one, EVERYTHING), (other, returned), (third, EventFilter(turn_id="another"))):
            await watcher.begin(StreamPosition(), event_filter, head=HEAD)
        reads = [asyncio.create_task(everything(watcher)) for watcher in (one, other, third)]
        await asyncio.sleep(0)
        log.open.set()
        delivered = await asyncio.gather(*reads)
    whole = list(range(1, LENGTH + 1))
    assert [numbers(batches) for batches in delivered] == [whole, whole[1::2], []]
    assert {batches[-1].position for batches in delivered} == {StreamPosition(sequence=LENGTH, live=True)}


async def test_a_watcher_that_knows_of_a_newer_event_reads_for_itself() -> None:
    log = Log()
    watchers, feeds = feeds_of(log)
    with watchers.open(KEY) as one, watchers.open(KEY) as other:
        for watcher in (one, other):
            await watcher.begin(StreamPosition(), EVERYTHING, head=HEAD)
        reads = [asyncio.create_task(one.next())]
        await asyncio.sleep(0)
        feeds.notify_grown(KEY, LENGTH + 1)
        reads.append(asyncio.create_task(other.next()))
        await asyncio.sleep(0)
        assert log.reads == [(0, BATCH_EVENTS)] * 2
        log.open.set()
        await asyncio.gather(*reads)


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "leaves"])
async def test_a_watcher_that_fails_or_leaves_disturbs_no_other(*, fails: bool) -> None:
    log = Log()
    watchers, feeds = feeds_of(log)
    with watchers.open(KEY) as one, watchers.open(KEY) as other:
        for watcher in (one, other):
            await watcher.begin(StreamPosition(), EVERYTHING, head=HEAD)
        leaving, staying = asyncio.create_task(one.next()), asyncio.create_task(everything(other))
        await asyncio.sleep(0)
        log.fails = fails
        if not fails:
            leaving.cancel()
        log.open.set()
        await asyncio.wait([leaving])
        assert leaving.cancelled() or isinstance(leaving.exception(), ServiceUnavailable)
        assert numbers(await staying) == list(range(1, LENGTH + 1))
        feed = feeds.get(KEY)
        assert feed is not None
        assert feed.pages.is_empty


async def test_a_watcher_that_waits_and_leaves_disturbs_no_other() -> None:
    log = Log()
    watchers, _ = feeds_of(log)
    with watchers.open(KEY) as one, watchers.open(KEY) as other, watchers.open(KEY) as third:
        for watcher in (one, other, third):
            await watcher.begin(StreamPosition(), EVERYTHING, head=HEAD)
        reads = [asyncio.create_task(watcher.next()) for watcher in (one, other, third)]
        await asyncio.sleep(0)
        reads[1].cancel()
        await asyncio.wait([reads[1]])
        log.open.set()
        batches = [await asyncio.wait_for(read, TIMEOUT) for read in (reads[0], reads[2])]
        assert batches[0] is batches[1]
        assert log.reads[0] == (0, BATCH_EVENTS)
        assert [after for after, _ in log.reads].count(0) == 1, "the page is read once"


async def settled() -> None:
    """Lets reads that are under way end."""
    for _round in range(3 * ROUNDS):
        await asyncio.sleep(0)


@pytest.mark.parametrize("settles", [False, True], ids=["is reading", "has"])
async def test_a_watcher_that_comes_later_shares_the_page_that_another_one(*, settles: bool) -> None:
    log = Log()
    log.open.set()
    watchers, feeds = feeds_of(log)
    with watchers.open(KEY) as one, watchers.open(KEY) as other:
        await one.begin(StreamPosition(), EVERYTHING, head=HEAD)
        first = [await one.next()]
        if settles:
            first.append(await one.next())
            await settled()
        await other.begin(StreamPosition(), EVERYTHING, head=HEAD)
        second, rest = await everything(other), await everything(one)
        feed = feeds.get(KEY)
        assert feed is not None
        assert feed.pages.is_empty, "no page is kept"
    assert numbers([batch for batch in first if batch is not None] + rest) == numbers(second)
    assert numbers(second) == list(range(1, LENGTH + 1))
    assert [after for after, _ in log.reads].count(BATCH_EVENTS - 1) == 1, "the second page is read once"


@pytest.mark.parametrize("settles", [False, True], ids=["is reading", "has"])
async def test_no_watcher_shares_the_page_of_a_lost_log_that_another_one(*, settles: bool) -> None:
    log = Log()
    log.open.set()
    watchers, feeds = feeds_of(log)
    with watchers.open(KEY) as one, watchers.open(KEY) as other:
        await one.begin(StreamPosition(), EVERYTHING, head=HEAD)
        await one.next()
        if settles:
            await one.next()
        await asyncio.sleep(0)
        feed = feeds.get(KEY)
        assert feed is not None
        feed.reset(LogEnd(LENGTH))
        await settled()
        await other.begin(StreamPosition(sequence=BATCH_EVENTS), EVERYTHING, head=HEAD)
        other._page_limit = PAGE_MOST  # noqa: SLF001 - as one that came from the page before
        assert numbers(await everything(other)) == list(range(BATCH_EVENTS + 1, LENGTH + 1))
    assert [after for after, _ in log.reads].count(BATCH_EVENTS - 1) == 2


@pytest.mark.parametrize("length", [12, 17, 18, 30])
async def test_a_page_is_shared_only_if_it_has_all_events_that_are_known(length: int) -> None:
    log, pages = Log(length), SharedPages()
    log.open.set()
    read = SharedRead(PageRequest(10, 8, 30))
    with pages.reading(read):
        assert pages.get(read.request) is read
        page = await read.read(lambda: log.events(after=10, limit=8))
    shared = pages.get(read.request)
    assert page.last == min(length, 18)
    assert (shared is not None) == (length >= 18)
    assert shared is None or await shared.wait() is page


async def test_the_page_behind_one_is_read_while_that_one_is_sent_and_no_further() -> None:
    log = Log(BATCH_EVENTS + 3 * PAGE_MOST)
    log.open.set()
    watchers, _ = feeds_of(log)
    half = PAGE_MOST // BATCH_EVENTS // 2
    with watchers.open(KEY) as watcher:
        await watcher.begin(StreamPosition(), EVERYTHING, head=replace(HEAD, last_seq=log.length))
        sent, expected = list[Batch](), 2
        for number in range(1 + PAGE_MOST // BATCH_EVENTS):
            batch = await watcher.next()
            assert batch is not None
            sent.append(batch)
            await settled()
            expected += number == half
            assert len(log.reads) == expected, f"after {number} batches of the second page"
        sent += await everything(watcher)
    assert numbers(sent) == list(range(1, log.length + 1))
    assert [after for after, _ in log.reads] == [0, *(BATCH_EVENTS + n * PAGE_MOST - 1 for n in range(3))]


async def test_a_page_that_could_not_be_read_ahead_is_read_when_it_is_needed() -> None:
    log = Log()
    log.open.set()
    watchers, _ = feeds_of(log)
    with watchers.open(KEY) as watcher:
        await watcher.begin(StreamPosition(), EVERYTHING, head=HEAD)
        first = await watcher.next()
        assert first is not None
        log.fails = True
        await settled()
        assert not log.fails, "it was read ahead"
        assert numbers([first, *await everything(watcher)]) == list(range(1, LENGTH + 1))
    assert [after for after, _ in log.reads] == [0, BATCH_EVENTS - 1, BATCH_EVENTS - 1]


async def test_a_page_that_was_read_ahead_for_another_position_is_not_taken() -> None:
    log = Log()
    log.open.set()
    watchers, feeds = feeds_of(log)
    with feeds.attach(KEY) as feed:
        ahead = SharedRead(PageRequest(BATCH_EVENTS, 8, LENGTH))
        await ahead.read(lambda: log.events(after=BATCH_EVENTS - 1, limit=9))
        feed.notify_grown(LENGTH)
        for after in (10, BATCH_EVENTS):
            page = await watchers.reader.next_page(
                KEY, feed, StreamPosition(sequence=after), ahead=ahead, limit=8, head=watchers.head
            )
            assert [event.sequence for event in page.after(after)] == list(range(after + 1, after + 9))


@pytest.mark.parametrize("gap", [1, 2, 7])
def test_a_page_ends_before_a_gap(gap: int) -> None:
    page = LogPage(10, [event(number) for number in range(11, 20) if number != 10 + gap])
    assert [event.sequence for event in page.events] == list(range(11, 10 + gap))
    assert page.last == 9 + gap
    assert [event.sequence for event in page.after(11)] == list(range(12, 10 + gap))
