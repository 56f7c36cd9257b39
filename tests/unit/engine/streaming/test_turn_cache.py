"""Cached turns: never one that another replica may have changed, never one that is older than the wait."""

import random
import time
from collections.abc import Sequence
from typing import Any, cast

from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import a_head, a_session_key, a_turn
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.engine.streaming.batch import EventFilter
from turnkeeper.engine.streaming.batch_builder import PreviewCodec
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.turn_cache import CACHED_TURNS, CachedTurn, TurnCache
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.store.changeset import Changeset, Committed, StoredEvent
from turnkeeper.store.contract import Store
from turnkeeper.telemetry.metrics import Metrics

PLACE = a_session_key(session_id="s")
KEY = SessionKey(PLACE.tenant, "s")


def a_changeset(*turns: Turn, after: int) -> Changeset:
    return Changeset(
        changeset_id=f"step-{after}",
        tenant=PLACE.tenant,
        session_id="s",
        last_seq=after,
        fence=1,
        head_fence=1,
        cancel="",
        events=(),
        turns=turns,
    )


def committed(*turn_ids: str, after: int) -> Committed:
    """With one event of each of these turns."""
    numbered = enumerate(turn_ids, after + 1)
    events = tuple(StoredEvent(sequence=n, kind="turn_completed", turn_id=i, payload=b"x") for n, i in numbered)
    return Committed(last_seq=after + len(turn_ids), fence=1, events=events)


def running(turn_id: str = "t", **given: Any) -> Turn:
    return a_turn(PLACE, id=turn_id, state=TurnState.RUNNING, **given)


class TestOwnChangesets:
    def test_the_last_one_counts_with_the_number_of_its_last_event(self) -> None:
        turns = TurnCache()
        turns.add(a_changeset(running(), after=4), committed("t", "t", after=4), sent_at=1.0)
        ended = a_turn(PLACE, id="t", state=TurnState.COMPLETED)
        turns.add(a_changeset(ended, after=6), committed("t", "", after=6), sent_at=2.0)
        assert turns.get("t", since=0, until=8) == CachedTurn(ended, 7, 2.0)
        turns.add(a_changeset(after=8), committed("t", after=8), sent_at=3.0)
        assert turns.get("t", since=0, until=9) == CachedTurn(ended, 9, 2.0), "an event that leaves the turn as it is"

    def test_a_turn_without_an_event_in_its_changeset_may_have_one_up_to_there(self) -> None:
        turns = TurnCache()
        turns.add(a_changeset(running(), after=4), committed("u", after=4), sent_at=1.0)
        cached = turns.get("t", since=0, until=5)
        assert cached is not None
        assert cached.last_seq == 5

    def test_only_a_few_are_cached(self) -> None:
        turns = TurnCache()
        for number in range(CACHED_TURNS + 1):
            turns.add(a_changeset(running(f"t{number}"), after=number), committed("", after=number), sent_at=1.0)
        assert turns.get("t0", since=0, until=0) is None
        assert turns.get("t1", since=0, until=0) is not None


class TestOthersChangesets:
    def test_a_newer_event_of_another_replica_overtakes_all(self) -> None:
        turns = TurnCache()
        turns.add(a_changeset(running(), after=4), committed("t", after=4), sent_at=1.0)
        assert turns.get("t", since=0, until=6) is None

    def test_a_changeset_after_another_replicas_counts_for_its_own_turns_alone(self) -> None:
        turns = TurnCache()
        turns.add(a_changeset(running("t"), after=4), committed("t", after=4), sent_at=1.0)
        turns.add(a_changeset(running("u"), after=6), committed("u", after=6), sent_at=2.0)
        assert turns.get("t", since=0, until=7) is None
        assert turns.get("u", since=0, until=7) is not None

    def test_a_late_confirmation_of_an_earlier_changeset_changes_nothing(self) -> None:
        turns = TurnCache()
        turns.add(a_changeset(running("u"), after=5), committed("u", after=5), sent_at=2.0)
        turns.add(a_changeset(running("t"), after=4), committed("t", after=4), sent_at=1.0)
        assert turns.get("t", since=0, until=6) is None
        assert turns.get("u", since=0, until=6) is not None


class TestWaiting:
    async def test_only_a_changeset_that_was_sent_after_the_wait_began_counts(self) -> None:
        feeds = Feeds(None, poll=1)  # type: ignore[arg-type]  # it is not used
        with feeds.waiting(KEY) as first:
            feeds.publish(a_changeset(running(), after=4), committed("t", after=4), sent_at=time.monotonic())
            assert first.cached_turn("t") is not None
            with feeds.waiting(KEY) as second:
                assert second.cached_turn("t") is None
                feeds.publish(a_changeset(running(), after=5), committed("t", after=5), sent_at=time.monotonic())
                assert second.cached_turn("t") is not None
                feeds.notify_grown(KEY, 7)
                assert first.cached_turn("t") is None

    async def test_nothing_is_cached_after_the_last_wait(self) -> None:
        feeds = Feeds(None, poll=1)  # type: ignore[arg-type]  # it is not used
        with feeds.attach(KEY) as feed:
            with feeds.waiting(KEY):
                feeds.publish(a_changeset(running(), after=4), committed("t", after=4), sent_at=time.monotonic())
                cached = feed.turns
            assert (cached is not None, feed.turns) == (True, None)
        assert feeds.get(KEY) is None


class Log:
    """A log with events that the feed does not know of."""

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq

    async def events(self, *_: str, after: int, limit: int) -> Sequence[StoredEvent]:
        numbers = range(after + 1, self.last_seq + 1)[:limit]
        return [StoredEvent(sequence=number, kind="tool_called", turn_id="t", payload=b"x") for number in numbers]


class TestWatching:
    async def test_a_watcher_that_has_read_more_than_the_feed_knows_gets_no_cached_turn(self) -> None:
        feeds, metrics = Feeds(cast(Store, None), poll=1), Metrics(NoOpMeterProvider())
        watchers = Watchers(
            cast(Store, Log(6)),
            feeds,
            cast(PreviewCodec, None),
            metrics=metrics,
            times=StreamTimes(keep_alive=15, rotation=60),
            rng=random.Random(1),
        )
        head = a_head(KEY, last_seq=4, active_turn="t")
        with watchers.open(KEY, caches_turns=True) as watcher:
            await watcher.begin(StreamPosition(), EventFilter(turn_id="t"), head=head)
            feeds.publish(a_changeset(running(), after=4), committed("t", after=4), sent_at=time.monotonic())
            assert watcher.cached_turn("t") is not None
            batch = await watcher.next()
            assert batch is not None
            assert batch.position.sequence == 6, "one more than the feed knows of"
            assert watcher.cached_turn("t") is None
