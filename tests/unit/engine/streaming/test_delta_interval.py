"""New text is shown once an interval, to all watchers at the same time; the first text and events are shown at once."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Coroutine, Iterator
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.call_counts import calls_of
from tests.unit.engine.simulation.virtual_loop import Clock, VirtualLoop
from tests.unit.engine.streaming.test_turn_cache import KEY, a_changeset, committed, running
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.batch_builder import BatchBuilder
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.preview import READER_FIRST, Preview
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.pb.v1 import event_pb2
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.telemetry.metrics import Metrics

INTERVAL = timedelta(milliseconds=40)
LATE = int(READER_FIRST * 1000)


OURS = {"Preview", "Feed", "FeedMemory", "Broadcast", "Watcher", "BatchBuilder", "Batch", "StreamPosition", "WireCodec"}


class Unused:
    """A store that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


class Reading:
    """One stream, and what came on it: the milliseconds, and the text of the deltas or the number of the event."""

    def __init__(self, tail: "Tail", *, interval: float | None, offset: int = 0, live: bool = True) -> None:
        self.came: list[tuple[int, str]] = []
        self.batches: list[Batch] = []
        self.bytes = offset
        start = StreamPosition(sequence=5, live=live)
        if offset:
            start = StreamPosition(sequence=5, live=True, message_id="m", attempt=1, offset=offset)
        self._tail = tail
        self.task = tail.run(self._read(start, interval))

    async def _read(self, start: StreamPosition, interval: float | None) -> None:
        with self._tail.watchers.open(KEY) as watcher:
            self.watcher: Watcher = watcher
            await watcher.begin(start, EventFilter(previews=True), delta_interval=interval)
            while batch := await watcher.next():
                self.batches.append(batch)
                texts = [self._text(payload) for payload in batch.events]
                if texts:
                    self.came.append((self._tail.milliseconds, "".join(texts)))

    def _text(self, payload: bytes) -> str:
        if payload == b"x":
            return "|"
        delta = event_pb2.Event.FromString(payload).content_delta
        assert delta.offset == self.bytes
        self.bytes += len(delta.text.encode())
        return delta.text


class CountingBuilder(BatchBuilder):
    """Counts the batches that it builds, and the looks for text alone."""

    built = looks = 0

    def build(self, *args: Any, **kwargs: Any) -> Batch:
        self.built += 1
        return super().build(*args, **kwargs)

    def shown_last(self, *args: Any, **kwargs: Any) -> Batch | None:
        self.looks += 1
        return super().shown_last(*args, **kwargs)


class Tail:
    """A session's live tail in virtual time."""

    def __init__(self, *, delta_interval: timedelta) -> None:
        self._clock = Clock()
        self._start = self._clock.now
        self.loop = VirtualLoop(self._clock)
        self._tasks: list[asyncio.Task[None]] = []
        store: Any = Unused()
        self._feeds = Feeds(store, poll=1, delta_interval=delta_interval)
        self.watchers = Watchers(
            store,
            self._feeds,
            WireCodec(),
            metrics=Metrics(NoOpMeterProvider()),
            times=StreamTimes(keep_alive=60, rotation=600),
            rng=random.Random(1),
        )
        self.builder = self.watchers.builder = CountingBuilder(WireCodec())
        self._turn = self._feeds.enter(KEY)
        self._before = self._feeds.enter(KEY)
        self._sequence = 4
        self.loop.call_soon(self._begin)
        self.loop.settle()

    def _begin(self) -> None:
        self.event()
        self.preview: Preview = self._turn.begin_preview(turn_id="t", message_id="m", attempt=1, started_after=5)

    def event(self) -> None:
        """Publishes a durable event."""
        after, self._sequence = self._sequence, self._sequence + 1
        self._feeds.publish(a_changeset(running(), after=after), committed("t", after=after), sent_at=math.inf)

    @property
    def milliseconds(self) -> int:
        return round((self._clock.now - self._start) / timedelta(milliseconds=1))

    def run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(coroutine)
        self._tasks.append(task)
        self.loop.settle()
        return task

    def pass_to(self, milliseconds: int) -> None:
        """Lets the time pass, each millisecond by itself."""
        while self.milliseconds < milliseconds:
            self._clock.now += timedelta(milliseconds=1)
            self.loop.settle()

    def at(self, milliseconds: int, text: str) -> None:
        """Adds text at this time; "|" stands for a durable event."""
        self.pass_to(milliseconds)
        self.loop.call_soon(self.event if text == "|" else lambda: self.preview.append(text))
        self.loop.settle()

    def drain_with(self, text: str) -> None:
        """Drains the replica at the moment at which there is new text."""
        self.loop.call_soon(self.preview.append, text)
        self.loop.call_soon(self._feeds.drain)
        self.loop.settle()

    def close_streams(self) -> None:
        """Ends all streams, as if their clients left."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self.loop.settle()
        assert not any(task.exception() for task in tasks if task.done() and not task.cancelled())

    def close(self) -> None:
        self.close_streams()
        self.loop.close()


@pytest.fixture(name="tail")
def a_tail() -> Iterator[Tail]:
    tail = Tail(delta_interval=INTERVAL)
    yield tail
    tail.close()


def test_the_first_text_is_shown_at_once_and_more_once_an_interval(tail: Tail) -> None:
    reading = Reading(tail, interval=None)
    for milliseconds, text in [(10, "a"), (15, "é"), (30, "c"), (49, "d"), (60, "e"), (200, "f"), (210, "g")]:
        tail.at(milliseconds, text)
    tail.pass_to(400)
    assert reading.came == [(10, "a"), (40 + LATE, "éc"), (80 + LATE, "de"), (200, "f"), (240 + LATE, "g")]


def test_texts_that_begin_at_different_times_are_shown_at_common_times(tail: Tail) -> None:
    shown: dict[str, list[int]] = {"m": [], "n": []}

    def preview(name: str) -> Preview:
        beginning = Preview(
            lambda: shown[name].append(tail.milliseconds),
            turn_id="t",
            message_id=name,
            attempt=1,
            started_after=5,
            lease_held=lambda: True,
        )
        beginning.interval = INTERVAL.total_seconds()
        return beginning

    one, other = preview("m"), preview("n")
    for milliseconds in range(1, 200):
        tail.pass_to(milliseconds)
        for begin, text in ((3, one), (14, other)):
            if milliseconds >= begin:
                tail.loop.call_soon(text.append, "a")
        tail.loop.settle()
    assert shown == {"m": [3, 40, 80, 120, 160], "n": [14, 40, 80, 120, 160]}


def test_text_that_comes_when_the_interval_ends_is_shown_with_what_waited(tail: Tail) -> None:
    reading = Reading(tail, interval=None)
    for milliseconds, text in [(40, "a"), (50, "b"), (80, "c"), (120, "d"), (160, "e")]:
        tail.at(milliseconds, text)
    tail.pass_to(400)
    assert reading.came == [(40, "a"), (80, "bc"), (120, "d"), (160, "e")]


def test_an_event_is_shown_at_once_with_all_text_before_it(tail: Tail) -> None:
    reading = Reading(tail, interval=None)
    for milliseconds, text in [(50, "a"), (55, "b"), (80, "|"), (85, "c")]:
        tail.at(milliseconds, text)
    tail.pass_to(400)
    assert reading.came == [(50, "a"), (80, "|b"), (120 + LATE, "c")]


def test_watchers_of_one_message_share_the_bytes_of_what_is_shown(tail: Tail) -> None:
    first, second = Reading(tail, interval=None), Reading(tail, interval=None)
    tail.at(10, "a")
    tail.at(20, "b")
    late = Reading(tail, interval=None)
    tail.pass_to(100)
    assert first.came == second.came == [(10, "a"), (40 + LATE, "b")]
    assert first.batches[-1] is second.batches[-1] is late.batches[-1]
    assert late.came == [(20, "a"), (40 + LATE, "b")]


def test_a_stream_that_catches_up_gets_the_text_that_is_there(tail: Tail) -> None:
    tail.at(10, "a")
    reading = Reading(tail, interval=None, live=False)
    assert reading.came == [(10, "a")]


def test_a_watcher_looks_once_for_each_time_at_which_text_is_shown(tail: Tail) -> None:
    reading = Reading(tail, interval=None)
    tail.at(10, "a")
    built, looks = tail.builder.built, tail.builder.looks
    for milliseconds in range(20, 210):
        tail.at(milliseconds, "b")
    assert len(reading.came) == 1 + 5
    assert (tail.builder.built, tail.builder.looks) == (built, looks + 5), "text alone takes the short way"


def test_text_that_was_shown_last_costs_few_calls(tail: Tail) -> None:
    """Counts from the text to the batch, of a stream whose task writes it, without gRPC's writer."""
    reading = Reading(tail, interval=0)
    tail.at(10, "a")

    def ten_texts() -> None:
        for milliseconds in range(20, 30):
            tail.at(milliseconds, "b")

    _, counts = calls_of(ten_texts)
    assert len(reading.came) == 11
    ours = Counter({name: count for name, count in counts.items() if name.split(".")[0] in OURS})
    assert ours.total() <= 10 * 30, ours


def test_a_watcher_that_resumes_in_the_middle_gets_the_rest_exactly(tail: Tail) -> None:
    tail.at(10, "aé")
    tail.at(12, "b")
    reading = Reading(tail, interval=None, offset=1)
    ahead = Reading(tail, interval=None, offset=4)
    tail.at(20, "c")
    tail.pass_to(100)
    assert reading.came == [(12, "é"), (40 + LATE, "bc")]
    assert ahead.came == [(40 + LATE, "c")]


def test_a_watcher_may_ask_for_each_delta_as_it_comes(tail: Tail) -> None:
    reading = Reading(tail, interval=0)
    for milliseconds in (10, 11, 15, 40):
        tail.at(milliseconds, "a")
        assert reading.came[-1] == (milliseconds, "a")
        assert tail.loop.run_until_complete(_patience(tail)) == 0


def test_a_watcher_that_asks_for_fewer_deltas_delays_no_other_and_no_event(tail: Tail) -> None:
    seldom, other = Reading(tail, interval=0.2), Reading(tail, interval=None)
    for milliseconds, text in [(10, "a"), (60, "b"), (110, "c"), (215, "d"), (230, "|"), (300, "e")]:
        tail.at(milliseconds, text)
    tail.pass_to(600)
    assert seldom.came == [(10, "a"), (210, "bc"), (230, "|d"), (430, "e")]
    assert other.came == [(10, "a"), (60, "b"), (110, "c"), (215, "d"), (230, "|"), (300, "e")]


def test_a_reader_of_the_model_need_not_come_before_text_is_shown(tail: Tail) -> None:
    tail.at(10, "a")
    tail.pass_to(15)
    assert tail.loop.run_until_complete(_patience(tail)) == pytest.approx(0.025)
    tail.pass_to(40)
    assert tail.loop.run_until_complete(_patience(tail)) == 0


def test_without_an_interval_each_delta_is_shown_as_it_comes() -> None:
    tail = Tail(delta_interval=timedelta())
    reading = Reading(tail, interval=None)
    for milliseconds in (10, 11, 15, 40):
        tail.at(milliseconds, "a")
        assert reading.came[-1] == (milliseconds, "a")
    tail.close()


async def _patience(tail: Tail) -> float:
    return tail.preview.patience()
