"""A stream whose log is trimmed meanwhile: it goes on without a gap, or ends with CURSOR_EXPIRED."""

import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import a_turn, an_event
from tests.contracts.stores import TextCodec, a_changeset, begin, committed, head_of, trim, until
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.event import SessionResumed
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.errors import CursorExpired
from turnkeeper.store.changeset import Committed
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry.metrics import Metrics

GOES = SessionResumed(principal="ada")
"""Of a kind that trimming takes."""
LENGTH = 200
LONG = (False,) * 7
"""Parts that together are longer than a page, so that the end is not read ahead."""


class Codec(TextCodec):
    """The events here have no text of their own."""

    def delta(
        self, session_id: str, *, turn_id: str, message_id: str, attempt: int, offset: int, text: bytes, restarts: bool
    ) -> bytes:
        raise NotImplementedError

    def progress(self, session_id: str, *, turn_id: str, attempt: int, tool_call_id: str, message: str) -> bytes:
        raise NotImplementedError

    def message_text(self, payload: bytes) -> tuple[str, int, bytes]:
        raise NotImplementedError


async def _grow(store: MongoStore, key: SessionKey, *, kept: bool) -> Committed:
    """Appends so many events, of a kind that is kept or of one that is trimmed."""
    turn = a_turn(key, state=TurnState.COMPLETED)
    events = [an_event() if kept else an_event(payload=GOES) for _ in range(LENGTH)]
    return await committed(store.commit(a_changeset(await head_of(store, key), *events, new_turns=(turn,))))


async def _trim(store: MongoStore, key: SessionKey) -> None:
    async def done() -> bool:
        await trim(store)
        head = await head_of(store, key)
        return head.compacted_to == head.last_seq

    await until(done)


async def _follow(store: MongoStore, feeds: Feeds, key: SessionKey, *, after: int = 0) -> AsyncGenerator[Batch]:
    metrics = Metrics(NoOpMeterProvider())
    times = StreamTimes(keep_alive=15, rotation=60)
    watchers = Watchers(store, feeds, Codec(), metrics=metrics, times=times, rng=random.Random(1))
    with watchers.open(key) as watcher:
        await watcher.begin(StreamPosition(sequence=after), EventFilter(forever=False))
        while batch := await watcher.next():
            yield batch


@pytest.mark.parametrize("parts", [(True, *LONG), (True, *LONG, True)])
async def test_a_stream_that_reads_the_log_has_no_hole(store: MongoStore, parts: tuple[bool, ...]) -> None:
    """The stream ends at the trimmed part, behind the page that was read ahead, also if kept events are behind it."""
    key = await begin(store)
    for kept in parts:
        await _grow(store, key, kept=kept)
    numbers: list[int] = []
    async with aclosing(_follow(store, Feeds(store, poll=1), key)) as batches:
        with pytest.raises(CursorExpired) as expired:  # noqa: PT012 - the trimming comes in the middle
            async for batch in batches:
                assert batch.position.sequence == (numbers[-1] if numbers else 0) + len(batch.events)
                numbers.append(batch.position.sequence)
                if len(numbers) == 1:
                    await _trim(store, key)
    assert 1 + LENGTH <= numbers[-1] < 1 + len(LONG) * LENGTH
    assert expired.value.metadata == {
        "oldest_sequence": str(2 + len(parts) * LENGTH),
        "head_sequence": str(1 + len(parts) * LENGTH),
    }


async def test_a_stream_goes_on_from_the_ring_and_a_new_one_is_refused(store: MongoStore) -> None:
    """The ring holds the events after its beginning without a gap. The head decides where a stream may begin."""
    key = await begin(store)
    feeds = Feeds(store, poll=1)
    reached = 1
    with feeds.attach(key) as feed:
        stored = await _grow(store, key, kept=False)
        feed.publish(stored.events)
        async with aclosing(_follow(store, feeds, key, after=1)) as batches:
            async for batch in batches:
                if reached == 1:
                    await _trim(store, key)
                assert batch.position.sequence - reached == len(batch.events)
                reached = batch.position.sequence
        assert reached == 1 + LENGTH
        with pytest.raises(CursorExpired):
            await anext(_follow(store, feeds, key, after=1))
