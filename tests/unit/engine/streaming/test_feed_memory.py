"""What feeds hold counts in the budget; without news, without watchers, or beyond the budget they give it back."""

import pytest

from tests.unit.engine.streaming.test_feed import event, numbers
from turnkeeper.admission.memory import PROCESS_BYTES, MemoryBudget
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.feed import EVENT_BYTES, Feed
from turnkeeper.engine.streaming.feed_memory import REST_SECONDS, FeedMemory
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.preview import CHUNK_BYTES

ANSWER = 4096


class Tail:
    """The feeds of a replica, with a clock of their own."""

    def __init__(self, *, room: int = 1 << 30) -> None:
        self.now = 1000.0
        self.memory = MemoryBudget(PROCESS_BYTES + room)
        self.feed_memory = FeedMemory(self.memory, clock=lambda: self.now)
        self.feeds = Feeds(None, poll=1, memory=self.feed_memory)  # type: ignore[arg-type]  # it is not used

    @property
    def used(self) -> int:
        return self.memory.used()["feeds"]

    def watched(self, name: str = "s") -> Feed:
        return self.feeds.enter(SessionKey("default", name))

    def answer(self, feed: Feed) -> None:
        """Writes and completes one answer."""
        preview = feed.begin_preview(turn_id="t", message_id=f"m{feed.last_seq}", attempt=1)
        for _ in range(ANSWER // 8):
            preview.append("x" * 8)
        feed.publish([event(feed.last_seq + 1, kind="message_completed", size=ANSWER)])


@pytest.fixture
def tail() -> Tail:
    return Tail()


def test_text_that_is_written_counts_and_so_do_events_and_whole_texts(tail: Tail) -> None:
    feed = tail.watched()
    feed.begin_preview(turn_id="t", message_id="m", attempt=1).append("é" * 10)
    assert tail.used == 20 + CHUNK_BYTES
    feed.publish([event(1, kind="message_completed", size=100)])
    assert tail.used == 100 + EVENT_BYTES + 20


def test_a_session_that_was_watched_and_is_idle_gives_all_back(tail: Tail) -> None:
    feed, busy = tail.watched(), tail.watched("busy")
    for _ in range(12):
        tail.answer(feed)
    held = tail.used
    assert held > 12 * ANSWER
    tail.now += REST_SECONDS - 0.1
    tail.answer(busy)
    tail.feed_memory.rest()
    assert tail.used > held
    tail.now += 0.2
    tail.feed_memory.rest()
    assert tail.used == 2 * ANSWER + EVENT_BYTES, "that of the other one"
    assert not feed.texts
    assert feed.since(11) is None, "its watchers read the log"
    assert feed.last_seq == 12
    tail.answer(feed)
    assert numbers(feed.since(12)) == [13]


def test_the_text_that_is_being_written_stays_however_long_the_model_pauses(tail: Tail) -> None:
    feed = tail.watched()
    preview = feed.begin_preview(turn_id="t", message_id="m", attempt=1)
    preview.append("half of")
    for _ in range(3):
        tail.now += 10 * REST_SECONDS
        tail.feed_memory.rest()
    assert feed.preview is preview
    assert tail.used == 7 + CHUNK_BYTES
    preview.append(" it")
    assert preview.text() == "half of it"


def test_the_last_watcher_takes_all_of_it_away_also_from_a_call_that_was_left_behind(tail: Tail) -> None:
    feed = tail.watched()
    tail.answer(feed)
    preview = feed.begin_preview(turn_id="t", message_id="m", attempt=1)
    preview.append("begun")
    tail.feeds.leave(SessionKey("default", "s"), feed)
    assert tail.used == 0
    preview.append("by a model that does not end")
    assert tail.used == 0


def test_beyond_the_budget_the_feeds_with_the_oldest_news_give_back() -> None:
    tail = Tail(room=10 * 3 * ANSWER)
    tail.memory.most = 0  # no spare
    old, new = tail.watched("old"), tail.watched("new")
    for _ in range(4):
        tail.answer(old)
        tail.now += 1
    while numbers(old.since(0)) is not None:
        tail.answer(new)
        tail.now += 1
    assert numbers(new.since(0)) == list(range(1, new.last_seq + 1))
    assert not tail.memory.is_full
    for _ in range(100):
        tail.answer(new)
        assert not tail.memory.is_full, "a feed may give back what it has just got"
    assert new.last_seq > 100
    assert new.since(new.last_seq) == []
