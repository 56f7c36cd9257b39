"""The ends of logs on MongoDB: old documents, readings that lag, databases that are being restored."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.builders import an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of
from tests.integration.mongo.conftest import Client, NewStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import LogEnd
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.store import MongoStore


async def appended(store: MongoStore, key: SessionKey) -> LogEnd:
    await committed(store.commit(a_changeset(await head_of(store, key), an_event())))
    return (await head_of(store, key)).end


async def change_head(client: Client, database: str, key: SessionKey, change: dict[str, Any]) -> None:
    changed = await client[database].heads.update_one({"session_id": key.session_id}, change)
    assert changed.matched_count == 1


async def test_a_head_of_an_older_version_has_an_unknown_changeset_until_its_next_event(
    store: MongoStore, client: Client, database_name: str
) -> None:
    key = await begin(store)
    await change_head(client, database_name, key, {"$unset": {"end": ""}})
    assert (await head_of(store, key)).end == LogEnd(1)
    assert await store.ends([key]) == {key: LogEnd(1)}
    assert (await appended(store, key)).changeset_id


async def test_what_an_older_replica_appends_has_an_unknown_changeset(
    store: MongoStore, client: Client, database_name: str
) -> None:
    """It changes the last number, and leaves the field as it is."""
    key = await begin(store)
    end = await appended(store, key)
    event = await client[database_name].events.find_one({"session_id": key.session_id, "seq": 2}, {"_id": 0})
    assert event is not None
    await client[database_name].events.insert_one({**event, "seq": 3, "step_id": "of the older one"})
    await change_head(client, database_name, key, {"$set": {"last_seq": 3}, "$inc": {"revision": 1}})
    assert (await head_of(store, key)).end == LogEnd(3)
    assert await store.holds(key, end, LogEnd(3, "of the older one"))
    assert not await store.holds(key, LogEnd(3, end.changeset_id))
    assert (await appended(store, key)).sequence == 4


async def test_a_reading_that_lags_is_no_shorter_log(new_store: NewStore) -> None:
    class Behind(MongoStore):
        hidden = 0
        readings = 0

        async def _head_with(self, key: SessionKey, ends: Sequence[LogEnd]) -> Document | None:
            head = await super()._head_with(key, ends)
            self.readings += 1
            if head is not None and not self._consistent_reads.is_linearizable:
                head["last_seq"] -= self.hidden
            return head

    store = await new_store(Behind)
    assert isinstance(store, Behind)
    key = await begin(store)
    end = await appended(store, key)
    assert await store.holds(key, end)
    assert store.readings == 1
    store.hidden = 1
    assert await store.holds(key, end)
    assert store.readings == 3
    assert not await store.holds(key, LogEnd(3))


async def test_while_events_are_missing_nothing_is_known(store: MongoStore, client: Client, database_name: str) -> None:
    """Heads are restored already, events are not."""
    key = await begin(store)
    end = await appended(store, key)
    await client[database_name].events.delete_one({"session_id": key.session_id, "seq": 2})
    with pytest.raises(ServiceUnavailable):
        await store.holds(key, end)
    await change_head(client, database_name, key, {"$set": {"compacted_to": 2}})
    assert await store.holds(key, end), "it is trimmed"
