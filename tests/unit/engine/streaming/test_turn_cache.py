"""What is told of a turn without asking for it: never what somebody else may have changed, never what is older than
the question."""

import random
import time
from collections.abc import Sequence
from typing import Any, cast

from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import NOON, a_place, a_turn
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.engine.streaming.batch import EventFilter
from turnkeeper.engine.streaming.batch_builder import PreviewCodec
from turnkeeper.engine.streaming.feed import Feeds
from turnkeeper.engine.streaming.turn_cache import KEPT, CachedTurn, TurnCache
from turnkeeper.engine.streaming.watcher import Watchers
from turnkeeper.store.changeset import Cancel, Changeset, Committed, Head, StoredEvent
from turnkeeper.store.contract import Store
from turnkeeper.telemetry.metrics import Metrics

PLACE = a_place(session_id="s")
KEY = SessionKey(PLACE.tenant, "s")


def step(*turns: Turn, after: int) -> Changeset:
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


class TestOwnSteps:
    def test_the_last_one_counts_with_the_number_of_its_last_event(self) -> None:
        turns = TurnCache()
        turns.learn(step(running(), after=4), committed("t", "t", after=4), sent_at=1.0)
        ended = a_turn(PLACE, id="t", state=TurnState.COMPLETED)
        turns.learn(step(ended, after=6), committed("t", "", after=6), sent_at=2.0)
        assert turns.get("t", since=0, until=8) == CachedTurn(ended, 7, 2.0)
        turns.learn(step(after=8), committed("t", after=8), sent_at=3.0)
        assert turns.get("t", since=0, until=9) == CachedTurn(ended, 9, 2.0), "an event that leaves the turn as it is"

    def test_a_turn_without_an_event_in_its_step_may_have_one_up_to_there(self) -> None:
        turns = TurnCache()
        turns.learn(step(running(), after=4), committed("u", after=4), sent_at=1.0)
        known = turns.get("t", since=0, until=5)
        assert known is not None
        assert known.last == 5

    def test_only_a_few_are_kept(self) -> None:
        turns = TurnCache()
        for number in range(KEPT + 1):
            turns.learn(step(running(f"t{number}"), after=number), committed("", after=number), sent_at=1.0)
        assert turns.get("t0", since=0, until=0) is None
        assert turns.get("t1", since=0, until=0) is not None


class TestOthersSteps:
    def test_an_event_that_was_heard_of_overtakes_all(self) -> None:
        turns = TurnCache()
        turns.learn(step(running(), after=4), committed("t", after=4), sent_at=1.0)
        assert turns.get("t", since=0, until=6) is None

    def test_a_step_of_ours_behind_theirs_speaks_for_its_own_turns_alone(self) -> None:
        turns = TurnCache()
        turns.learn(step(running("t"), after=4), committed("t", after=4), sent_at=1.0)
        turns.learn(step(running("u"), after=6), committed("u", after=6), sent_at=2.0)
        assert turns.get("t", since=0, until=7) is None
        assert turns.get("u", since=0, until=7) is not None

    def test_late_news_of_an_earlier_step_change_nothing(self) -> None:
        turns = TurnCache()
        turns.learn(step(running("u"), after=5), committed("u", after=5), sent_at=2.0)
        turns.learn(step(running("t"), after=4), committed("t", after=4), sent_at=1.0)
        assert turns.get("t", since=0, until=6) is None
        assert turns.get("u", since=0, until=6) is not None


class TestWaiting:
    async def test_only_what_was_sent_after_the_wait_began_is_told(self) -> None:
        feeds = Feeds(None, poll=1)  # type: ignore[arg-type]  # it is not asked
        with feeds.waiting(KEY) as first:
            feeds.publish(step(running(), after=4), committed("t", after=4), sent_at=time.monotonic())
            assert first.known("t") is not None
            with feeds.waiting(KEY) as second:
                assert second.known("t") is None
                feeds.publish(step(running(), after=5), committed("t", after=5), sent_at=time.monotonic())
                assert second.known("t") is not None
                feeds.heard(KEY, 7)
                assert first.known("t") is None

    async def test_nothing_is_kept_once_nobody_waits(self) -> None:
        feeds = Feeds(None, poll=1)  # type: ignore[arg-type]  # it is not asked
        with feeds.attach(KEY) as feed:
            with feeds.waiting(KEY):
                feeds.publish(step(running(), after=4), committed("t", after=4), sent_at=time.monotonic())
                kept = feed.known
            assert (kept is not None, feed.known) == (True, None)
        assert feeds.get(KEY) is None


class Log:
    """All that is stored, whoever was told of it."""

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq

    async def events(self, *_: str, after: int, limit: int) -> Sequence[StoredEvent]:
        numbers = range(after + 1, self.last_seq + 1)[:limit]
        return [StoredEvent(sequence=number, kind="tool_called", turn_id="t", payload=b"x") for number in numbers]


class TestReading:
    async def test_a_reader_that_the_log_has_shown_more_than_was_heard_of_is_told_nothing(self) -> None:
        feeds, metrics = Feeds(cast(Store, None), poll=1), Metrics(NoOpMeterProvider())
        follower = Watchers(
            cast(Store, Log(6)),
            feeds,
            cast(PreviewCodec, None),
            metrics=metrics,
            heartbeat=15,
            rotation=60,
            rng=random.Random(1),
        )
        head = Head(
            session_id="s",
            tenant=PLACE.tenant,
            last_seq=4,
            fence=1,
            owner="",
            owned=False,
            active_turn="t",
            queue=(),
            cancel=Cancel(),
            lapses=0,
            now=NOON,
        )
        with follower.open(KEY, knows_turns=True) as reading:
            await reading.begin(StreamPosition(), EventFilter(turn_id="t"), head=head)
            feeds.publish(step(running(), after=4), committed("t", after=4), sent_at=time.monotonic())
            assert reading.known("t") is not None
            batch = await reading.next()
            assert batch is not None
            assert batch.place.sequence == 6, "one more than this replica has stored, or was told of"
            assert reading.known("t") is None
