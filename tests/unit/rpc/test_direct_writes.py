"""Responses go to a stream without its task; the task does what it alone can do, and nothing is lost in between."""

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
import pytest

from tests.call_counts import calls_of
from tests.unit.engine.streaming.test_delta_interval import OURS, Reading, Tail
from tests.unit.engine.streaming.test_turn_cache import KEY
from turnkeeper.admission.memory import SMALL, MemoryBudget
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import NONE, Batch, EventFilter
from turnkeeper.engine.streaming.stream_end import StreamEnded
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.errors import SlowConsumer
from turnkeeper.rpc.direct_writes import TRIED, CallStream, DirectWrites
from turnkeeper.rpc.identity import LaterChecks
from turnkeeper.rpc.stream_responses import response

PATIENCE = 0.2
"""Seconds that a reader may take nothing."""


class Wire:
    """Stands for gRPC's side of a call: writes one message after the other, each once the reader takes it."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.sending: list[asyncio.Future[None]] = []
        self.takes = True
        self.error: Exception | None = None

    async def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        assert all(sent.done() for sent in self.sending), "one message at a time"
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sending.append(sent)
        if self.takes:
            asyncio.get_running_loop().call_soon(self.take)
        await sent
        self.taken.append(data)

    def take(self) -> None:
        if not self.sending[-1].done():
            self.sending[-1].set_result(None)


class Recorded(CallStream):
    """Keeps the batches that were written directly."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.batches: list[Batch] = []

    def write(self, batch: Batch, now: float) -> bool:
        is_written = super().write(batch, now)
        if is_written:
            self.batches.append(batch)
        return is_written


class Watching(Reading):
    """A stream of which some responses go directly, `direct`, and the others by its task, `came`."""

    def __init__(
        self,
        tail: Tail,
        *,
        looked_at: frozenset[str] = NONE,
        check_due: float | None = None,
        interval: float | None = None,
    ) -> None:
        self.wire, self._late = Wire(), list[None]()
        self.held = MemoryBudget().part("responses")
        self.direct: list[str] = []
        self._looked_at, self._check_due = looked_at, check_due
        self.error: BaseException | None = None
        super().__init__(tail, interval=interval)

    @property
    def slow(self) -> int:
        """How often a write was late."""
        return len(self._late)

    async def _read(self, start: StreamPosition, interval: float | None) -> None:
        context: Any = self.wire
        check = LaterChecks(context, context, None, every=1)
        if self._check_due is not None:
            check.due = self._check_due
        self.writes = DirectWrites(PATIENCE, self.held, on_late=partial(self._late.append, None))
        self.stream = Recorded(self.writes, context, check)
        with self._tail.watchers.open(KEY) as self.watcher:
            self.watcher.write_directly(self.stream.of(KEY), looked_at=self._looked_at)
            await self.watcher.begin(start, EventFilter(previews=True), delta_interval=interval)
            try:
                while batch := await self.watcher.next():
                    self.batches.append(batch)
                    await context.write(response(batch, KEY))
            except (SlowConsumer, StreamEnded, ValueError) as error:
                self.error = error
            finally:
                self.stream.close()

    def text(self) -> str:
        """Returns all text and events, in the order in which the reader took them. Checks that no byte is missing."""
        all_batches = {id(batch): batch for batch in (*self.batches, *self.stream.batches)}
        by_wire = {batch.wire: batch for batch in all_batches.values()}
        return "".join(self._text(payload) for data in self.wire.taken for payload in by_wire[data].events)


@pytest.fixture(name="tail")
def a_tail() -> Iterator[Tail]:
    tail = Tail(delta_interval=timedelta())
    yield tail
    tail.close()


def begun(tail: Tail, **options: Any) -> Watching:
    """Returns a stream that has caught up and got the first text."""
    watching = Watching(tail, **options)
    tail.at(10, "a")
    return watching


def test_text_and_events_go_to_the_stream_and_its_task_sleeps(tail: Tail) -> None:
    watching = begun(tail)
    by_task = len(watching.batches)
    for milliseconds, text in [(20, "b"), (21, "é"), (30, "|"), (40, "c")]:
        tail.at(milliseconds, text)
    assert len(watching.batches) == by_task
    assert [len(batch.events) for batch in watching.stream.batches[-4:]] == [1, 1, 1, 1]
    tail.at(50, "d")  # gRPC's write of "c" is looked at now
    assert watching.text() == "abé|c"


def test_a_response_that_goes_directly_costs_few_calls(tail: Tail) -> None:
    """Counts from the text to gRPC's write."""
    watching = begun(tail)

    def ten_texts() -> None:
        for milliseconds in range(20, 30):
            tail.at(milliseconds, "b")

    _, counts = calls_of(ten_texts)
    assert len(watching.stream.batches) >= 10
    names = {*OURS, "Recorded", "CallStream", "DirectWrites"}
    ours = Counter({name: count for name, count in counts.items() if name.split(".")[0] in names})
    assert ours.total() <= 10 * 31, ours
    for of_task in (Watcher.next, Watcher._wait):  # noqa: SLF001 - of a function that is gone, the count would be 0
        assert counts[of_task.__qualname__] == 0


def test_watchers_of_one_session_share_the_bytes(tail: Tail) -> None:
    first, second, third = begun(tail), Watching(tail), Watching(tail)
    tail.at(20, "b")
    tail.at(30, "|")
    last = [watching.stream.batches[-1] for watching in (first, second, third)]
    assert last[0] is last[1] is last[2]
    tail.at(40, "c")
    assert first.wire.taken[-1] is second.wire.taken[-1] is third.wire.taken[-1]


def test_a_reader_that_has_not_taken_a_response_gets_the_rest_behind_it_in_one(tail: Tail) -> None:
    watching = begun(tail)
    watching.wire.takes = False
    tail.at(20, "b")
    written = len(watching.stream.batches)
    for milliseconds, text in [(30, "c"), (31, "|"), (40, "d")]:
        tail.at(milliseconds, text)
    assert len(watching.stream.batches) == written
    watching.wire.takes = True
    tail.loop.call_soon(watching.wire.take)
    tail.loop.settle()
    assert len(watching.batches[-1].events) >= 2
    tail.at(50, "e")
    tail.at(51, "f")
    text = watching.text()
    assert (text.replace("|", ""), text.count("|")) == ("abcde", 1)


def test_what_the_caller_looks_at_comes_by_the_task(tail: Tail) -> None:
    watching = begun(tail, looked_at=frozenset({"turn_completed"}))
    by_task = len(watching.batches)
    tail.at(20, "|")
    assert (len(watching.batches), watching.batches[-1].events) == (by_task + 1, [b"x"])


def test_a_caller_that_is_to_be_checked_again_gets_nothing_without_its_task(tail: Tail) -> None:
    watching = begun(tail, check_due=0.0)
    tail.at(20, "b")
    assert not watching.stream.batches
    assert watching.text() == "ab"


def test_a_reader_that_takes_nothing_for_too_long_is_slow_and_has_all_before(tail: Tail) -> None:
    watching = begun(tail)
    watching.wire.takes = False
    tail.at(20, "b")
    place = watching.watcher.position
    tail.pass_to(20 + int(PATIENCE * 1000) - 1)
    assert watching.slow == 0
    tail.pass_to(20 + int(PATIENCE * 1000) + 2)
    assert isinstance(watching.error, SlowConsumer)
    assert watching.slow == 1
    assert watching.watcher.resume_at == place, "gRPC holds what it was given, and sends it before the status"


def test_a_reader_that_takes_what_it_gets_is_never_slow(tail: Tail) -> None:
    watching = begun(tail)
    for milliseconds in range(20, 700, 90):
        tail.at(milliseconds, "b")
    tail.pass_to(1100)
    assert (watching.slow, watching.error) == (0, None)


def test_an_error_of_a_write_is_the_tasks(tail: Tail) -> None:
    watching = begun(tail)
    tail.at(20, "b")
    watching.wire.error = ValueError("gone")
    tail.at(30, "c")
    assert watching.error is watching.wire.error


def test_an_error_after_the_write_began_is_the_tasks_too(tail: Tail) -> None:
    watching = begun(tail)
    watching.wire.takes = False
    tail.at(20, "b")
    error = ValueError("gone")
    tail.loop.call_soon(watching.wire.sending[-1].set_exception, error)
    tail.at(30, "c")
    assert watching.error is error


def test_a_keep_alive_comes_after_silence_and_not_after_responses(tail: Tail) -> None:
    tail.watchers.keep_alive = 0.1
    watching = begun(tail)
    by_task = len(watching.batches)
    for milliseconds in range(50, 300, 50):
        tail.at(milliseconds, "b")
    assert len(watching.batches) == by_task
    tail.pass_to(250 + 99)
    assert len(watching.batches) == by_task
    tail.pass_to(250 + 101)
    assert [batch.events for batch in watching.batches[by_task:]] == [[]]


def test_what_is_on_its_way_counts_as_memory_until_it_is_taken_or_the_call_ends(tail: Tail) -> None:
    watching, other = begun(tail), Watching(tail)
    large = "x" * (4 * SMALL)
    tail.at(20, large)
    assert watching.held.used > 4 * SMALL
    tail.at(30, "b")
    assert watching.held.used == 0
    other.wire.takes = False
    tail.at(40, large)
    assert other.held.used > 4 * SMALL
    tail.close_streams()
    assert other.held.used == watching.held.used == 0
    assert other.wire.sending[-1].cancelled()


def test_a_client_that_leaves_gets_nothing_more(tail: Tail) -> None:
    watching = begun(tail)
    written = len(watching.stream.batches)

    def leave() -> None:
        tail.preview.append("b")
        watching.task.cancel()

    tail.loop.call_soon(leave)
    tail.loop.settle()
    assert len(watching.stream.batches) == written


def test_the_error_of_a_write_that_is_left_is_logged_nowhere(tail: Tail) -> None:
    watching, logged = begun(tail), list[dict[str, Any]]()
    tail.loop.set_exception_handler(lambda _, context: logged.append(context))
    watching.wire.takes = False
    tail.at(20, "b")
    tail.loop.call_soon(watching.wire.sending.pop().set_exception, ValueError("gone"))
    tail.loop.settle()
    tail.close_streams()
    del watching
    gc.collect()
    assert not logged


def test_a_stream_of_a_replica_that_drains_ends_by_its_task(tail: Tail) -> None:
    watching = begun(tail)
    written = len(watching.stream.batches)
    tail.drain_with("b")
    assert isinstance(watching.error, StreamEnded)
    assert len(watching.stream.batches) == written


def test_a_reader_with_an_interval_of_its_own_gets_no_deltas_before_it_is_over(tail: Tail) -> None:
    watching = begun(tail, interval=0.1)
    tail.at(200, "b")
    for milliseconds in range(210, 290, 10):
        tail.at(milliseconds, "c")
    assert len(watching.wire.sending) == 3
    tail.pass_to(310)
    assert watching.text() == "ab" + 8 * "c"


def test_the_version_of_grpc_is_one_that_was_tried() -> None:
    assert grpc.__version__ == TRIED, "try direct_writes.py with this version, and name it there"


def test_a_call_that_has_ended_is_kept_by_nothing(tail: Tail) -> None:
    watching = begun(tail)
    tail.at(20, "b")
    kept = weakref.ref(watching.wire)
    tail.close_streams()
    del watching
    gc.collect()
    assert kept() is None
