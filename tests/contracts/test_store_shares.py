"""Living replicas share what is to be purged and trimmed: each does its part, and then what others left."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial

import pytest
from pymongo.database import Database

from tests.contracts.implementations import having
from tests.contracts.stores import LONG, begin, purge, until
from tests.contracts.test_store_retention import NOTHING, NewMongo, a_long_log, delete, numbers
from turnkeeper.store.maintenance import Retention
from turnkeeper.store.mongo import purges, shares, trims
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.store import MongoStore


@having(Retention)
async def test_living_replicas_share_what_is_purged(new_store: NewMongo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each removes its share, page by page in one call, and none that is another's."""
    monkeypatch.setattr(purges, "PAGE", 2)
    monkeypatch.setattr(shares, "SHARE_KEPT", timedelta(hours=1))
    replicas = await _living(new_store)
    keys = [await begin(replicas[0]) for _ in range(15)]
    for key in keys:
        await delete(replicas[0], key)
    pages = await asyncio.gather(*(_pages(replica.purge(after=NOTHING)) for replica in replicas))
    assert pages == [[2, 2, 1]] * 3
    assert await replicas[0].last_seqs(keys) == {}


@having(Retention)
async def test_what_a_replica_does_not_purge_is_purged_by_the_others(
    new_store: NewMongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third has a fresh heartbeat, but purges nothing."""
    monkeypatch.setattr(shares, "SHARE_KEPT", NOTHING)
    replicas = await _living(new_store)
    keys = [await begin(replicas[0]) for _ in range(9)]
    for key in keys:
        await delete(replicas[0], key)
    assert await purge(replicas[1]) == 9
    assert await replicas[0].last_seqs(keys) == {}


@having(Retention)
async def test_living_replicas_share_the_logs_that_are_trimmed(
    new_store: NewMongo, shared_database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trims, "PAGE", 2)
    monkeypatch.setattr(shares, "SHARE_KEPT", timedelta(days=365 * 99))  # a new log has been due since its creation
    replicas = await _living(new_store)
    keys = [await a_long_log(replicas[0], turns=1) for _ in range(9)]
    await until(partial(_stored_before_this_second, shared_database))
    pages = await asyncio.gather(*(_pages(replica.trim(keep=NOTHING, pause=LONG)) for replica in replicas))
    assert pages == [[6, 3]] * 3
    for key in keys:
        assert await numbers(replicas[0], key) == [2]


async def _living(new_store: NewMongo) -> list[MongoStore]:
    replicas = [await new_store(f"replica-{number}") for number in range(3)]
    for replica in replicas:
        await replica.write_heartbeat(silent_after=LONG)
    return replicas


async def _pages(pages: AsyncIterator[int]) -> list[int]:
    return [done async for done in pages]


async def _stored_before_this_second(database: Database[Document]) -> bool:
    """Ages of events are whole seconds."""
    newest = max(event["_id"].generation_time for event in database.events.find())
    return bool(database.command("hello")["localTime"].timestamp() >= newest.timestamp() + 1)
