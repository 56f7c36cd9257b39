"""What a watcher is shown of the tools that run: after all events, each line once, and only what still counts."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from tests.unit.engine.streaming.test_turn_cache import KEY
from tests.unit.engine.streaming.test_watcher import COMMIT, watchers_and_feeds
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import BATCH_EVENTS, EventFilter
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.tool_progress import ProgressLine, ToolProgress
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.pb.v1 import event_pb2

WITH_PREVIEWS = EventFilter(previews=True)


def a_line(message: str, call: str = "call", **given: Any) -> ProgressLine:
    return ProgressLine(**{"turn_id": "t", "attempt": 1, "tool_call_id": call, "message": message, **given})


async def next_lines(watcher: Watcher) -> list[str]:
    """Returns what the next batch shows of tools."""
    async with asyncio.timeout(5):
        batch = await watcher.next()
    assert batch is not None
    assert batch.position == StreamPosition(sequence=5, live=True), "a line does not move the stream"
    return [event_pb2.Event.FromString(payload).tool_progress.message for payload in batch.events]


async def shown_after_catching_up(event_filter: EventFilter, *lines: ProgressLine) -> tuple[Watcher, Feed]:
    """Returns a watcher that has caught up, when its session has these lines, and the session's feed."""
    watchers, feeds = watchers_and_feeds()
    watcher = watchers.open(KEY)
    feed = feeds.get(KEY)
    assert feed is not None
    for line in lines:
        feed.show_progress(line)
    feeds.publish(*COMMIT, sent_at=time.monotonic())
    await watcher.begin(StreamPosition(sequence=4, live=True), event_filter)
    batch = await watcher.next()
    assert batch is not None
    assert batch.events == [b"x"]
    return watcher, feed


def messages(progress: ToolProgress, *, since: int = 0, last_seq: int = 5) -> Sequence[str]:
    return [line.message for line in progress.since(since, last_seq=last_seq)]


async def test_a_line_that_came_before_an_event_is_shown_right_after_it() -> None:
    watcher, feed = await shown_after_catching_up(WITH_PREVIEWS, a_line("one"))
    assert await next_lines(watcher) == ["one"]
    feed.show_progress(a_line("two"))
    feed.show_progress(a_line("three"))
    assert await next_lines(watcher) == ["three"]


async def test_lines_of_many_calls_come_in_order_as_much_as_fits() -> None:
    calls = [f"{number}" for number in range(BATCH_EVENTS + 3)]
    watcher, _ = await shown_after_catching_up(WITH_PREVIEWS, *(a_line(call, call) for call in calls))
    assert await next_lines(watcher) == calls[:BATCH_EVENTS]
    assert await next_lines(watcher) == calls[BATCH_EVENTS:]


async def test_a_watcher_of_another_turn_is_not_shown_a_line() -> None:
    other = EventFilter(previews=True, turn_id="t")
    watcher, feed = await shown_after_catching_up(other, a_line("not of this turn", turn_id="u"))
    feed.show_progress(a_line("of this turn"))
    assert await next_lines(watcher) == ["of this turn"]


def test_an_ended_call_has_no_line() -> None:
    progress = ToolProgress()
    progress.put(a_line("one", "a"))
    progress.put(a_line("two", "b"))
    progress.end("a")
    progress.end("never told anything")
    assert messages(progress) == ["two"]


def test_a_line_of_another_replica_counts_until_the_next_event() -> None:
    progress = ToolProgress()
    progress.put(a_line("here", "a"))
    progress.put(a_line("there", "b", after=5, is_local=False))
    assert messages(progress, last_seq=5) == ["here", "there"]
    assert messages(progress, last_seq=6) == ["here"], "the event may be the call's end"
    progress.put(a_line("there, later", "c", after=6, is_local=False))
    assert messages(progress, last_seq=6) == ["here", "there, later"]
    assert messages(progress, last_seq=5) == ["here"], "what was there before is forgotten"


def test_only_the_lines_of_this_replica_are_published_by_it() -> None:
    progress = ToolProgress()
    progress.put(a_line("here", "a"))
    progress.put(a_line("there", "b", after=5, is_local=False))
    (line,) = progress.of_this_replica(since=0)
    assert line.message == "here"
    assert not list(progress.of_this_replica(since=line.number))
