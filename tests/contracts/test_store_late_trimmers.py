"""Trimmers and deleted sessions: one that wakes too late finds a new session under the id, and leaves it alone."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import AGENT, NOON, a_first_event, a_session, a_session_key, an_event
from tests.contracts.implementations import having
from tests.contracts.stores import TextCodec, a_changeset, begin, committed, head_of, purge, trim, until
from turnkeeper.domain.event import HISTORY, SessionResumed
from turnkeeper.domain.fork import COPIED
from turnkeeper.domain.history import BEGINNINGS
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import HeadChange
from turnkeeper.store.contract import Store
from turnkeeper.store.maintenance import Retention
from turnkeeper.store.mongo.store import MongoStore

NOTHING = timedelta()
GOES = SessionResumed(principal="ada")
"""Of a kind that trimming takes."""
LENGTH = 7
LOG = list(range(1, LENGTH + 1))


async def grow(store: Store, key: SessionKey) -> None:
    events = (an_event(payload=GOES) for _ in range(LENGTH - 1))
    await committed(store.commit(a_changeset(await head_of(store, key), *events)))


async def delete(store: Store, key: SessionKey) -> None:
    changeset = a_changeset(await head_of(store, key), an_event(), head=HeadChange(deleted=True))
    await committed(store.commit(changeset))


async def numbers(store: Store, key: SessionKey) -> list[int]:
    return [event.sequence for event in await store.events(key, after=0, limit=99)]


class Slow(MongoStore):
    """Stands still once, in the middle of trimming: before the new beginning is stored, or before it deletes."""

    before_mark = False
    held: asyncio.Event
    go_on: asyncio.Event

    async def _oldest_to_keep(self, log: Any, **given: Any) -> int:
        oldest = await super()._oldest_to_keep(log, **given)
        if self.before_mark and oldest > log.compacted_to + 1:
            await self._hold()
        return oldest

    async def _delete_up_to(self, log: Any) -> int:
        if log.compacted_to > log.trimmed_to and not self.before_mark:
            await self._hold()
        return await super()._delete_up_to(log)

    async def _hold(self) -> None:
        self.held.set()
        await self.go_on.wait()


async def trim_until_held(slow: Slow) -> None:
    """Ages are whole seconds: the first calls may find nothing."""
    while not slow.held.is_set():
        await trim(slow)


@pytest.mark.parametrize("before_mark", [True, False])
async def test_a_trimmer_that_wakes_too_late_leaves_a_new_session_alone(
    mongo_uri: str, database_name: str, before_mark: bool
) -> None:
    slow, other = (kind(mongo_uri, database=database_name, codec=TextCodec()) for kind in (Slow, MongoStore))
    assert isinstance(slow, Slow)
    slow.before_mark, slow.held, slow.go_on = before_mark, asyncio.Event(), asyncio.Event()
    try:
        await other.open()
        key = await begin(other)
        await grow(other, key)
        stopped = asyncio.create_task(trim_until_held(slow))
        async with asyncio.timeout(10):
            await slow.held.wait()
        assert (await head_of(other, key)).compacted_to == (0 if before_mark else LENGTH)
        await delete(other, key)
        assert await purge(other) == 1
        again = a_session(key, create_time=NOON + timedelta(minutes=1))
        assert await other.create_session(again, AGENT, event=a_first_event()) is None
        await grow(other, key)
        slow.go_on.set()
        await stopped
        assert await numbers(other, key) == LOG
        assert (await head_of(other, key)).compacted_to == 0
    finally:
        await slow.close()
        await other.close()


@having(Retention)
async def test_deleted_sessions_are_not_trimmed_and_delay_no_others(store: MongoStore) -> None:
    gone, there = await begin(store), await begin(store, a_session_key())
    for key in (gone, there):
        await grow(store, key)
    await delete(store, gone)

    async def trimmed() -> bool:
        await trim(store)
        return (await head_of(store, there)).compacted_to == LENGTH

    await until(trimmed)
    assert await numbers(store, there) == []
    for _ in range(2):
        await trim(store)
    assert await numbers(store, gone) == [*LOG, LENGTH + 1]


def test_what_trimming_keeps_is_all_that_models_and_restorations_read() -> None:
    assert HISTORY <= COPIED
    assert BEGINNINGS <= COPIED
