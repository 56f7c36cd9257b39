"""Open transactions of dead replicas are aborted by others that find a lapsed lease or an old heartbeat."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from pymongo.asynchronous.client_session import AsyncClientSession

from tests.builders import an_event
from tests.contracts.stores import LONG, SHORT, TextCodec, a_changeset, begin, committed, head_of, run_turn, until
from tests.integration.mongo.conftest import Client
from turnkeeper.domain.session import SessionKey
from turnkeeper.start_errors import NameTaken
from turnkeeper.store.contract import heartbeat_interval
from turnkeeper.store.mongo.client import Connection
from turnkeeper.store.mongo.documents import SCHEMA
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.mongo.transactions.orphans import Orphans

LEASE = timedelta(seconds=2)


@contextlib.asynccontextmanager
async def _store(mongo_uri: str, database: str, replica: str) -> AsyncIterator[MongoStore]:
    store = MongoStore(mongo_uri, database=database, codec=TextCodec(), replica=replica)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _orphan(client: Client, database: str, key: SessionKey, *, of: str) -> AsyncIterator[AsyncClientSession]:
    """Opens a transaction on the session's head, as a server of this name would leave it behind."""
    async with client.start_session() as session:
        name = bytes(session.session_id["id"])
        await client[database].replicas.update_one({"_id": of}, {"$push": {"sessions": name}}, upsert=True)
        await session.start_transaction()
        changed = await client[database].heads.update_one(
            {"session_id": key.session_id}, {"$inc": {"revision": 1}}, session=session
        )
        assert changed.matched_count == 1
        try:
            yield session
        finally:
            await client.admin.command("killSessions", [session.session_id])


async def _requeued(store: MongoStore) -> int:
    count = 0

    async def any_lapsed() -> bool:
        nonlocal count
        count = await store.requeue_lapsed()
        return count > 0

    await until(any_lapsed)
    return count


async def test_i9_the_turn_of_a_dead_owner_is_freed_and_requeued(
    mongo_uri: str, database_name: str, client: Client
) -> None:
    async with _store(mongo_uri, database_name, "alive") as store:
        key = await begin(store)
        await run_turn(store, key, owner="dead", lease=SHORT)
        async with _orphan(client, database_name, key, of="dead"):
            assert await _requeued(store) == 1


async def test_i9_a_head_that_stays_locked_holds_no_other_up(
    mongo_uri: str, database_name: str, client: Client
) -> None:
    """The owner of the transaction is unknown: that head waits for the database, the other one does not."""
    async with _store(mongo_uri, database_name, "alive") as store:
        locked, free = await begin(store), await begin(store)
        for key in (locked, free):
            await run_turn(store, key, owner="dead", lease=SHORT)
        async with _orphan(client, database_name, locked, of="another"):
            assert await _requeued(store) == 1
            assert (await head_of(store, free)).owner == ""
            claim = await store.claim("alive", lease=SHORT)
            assert claim is not None
            assert claim.session_id == free.session_id


async def test_a_replica_that_comes_again_under_its_name_ends_what_it_left(
    mongo_uri: str, database_name: str, client: Client
) -> None:
    async with _store(mongo_uri, database_name, "other") as other:
        key = await begin(other)
        async with (
            _orphan(client, database_name, key, of="pod-0"),
            _store(mongo_uri, database_name, "pod-0") as store,
        ):
            await committed(store.commit(a_changeset(await head_of(store, key), an_event("free again"))))


class TestNames:
    """Two living processes of one name: the second one is refused. One that was killed has a successor."""

    async def test_a_living_replica_keeps_its_name_and_its_transactions(
        self, mongo_uri: str, database_name: str, client: Client
    ) -> None:
        async with _store(mongo_uri, database_name, "pod-0") as first:
            key = await begin(first)
            await first.write_heartbeat(silent_after=LEASE)
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(_beat(first))
                async with _orphan(client, database_name, key, of="pod-0") as session:
                    with pytest.raises(NameTaken, match="a replica named pod-0 runs on this database already"):
                        async with _store(mongo_uri, database_name, "pod-0"):
                            pass
                    await session.commit_transaction()
                beating.cancel()

    async def test_the_successor_of_a_killed_one_starts_within_5_s(
        self, mongo_uri: str, database_name: str, client: Client
    ) -> None:
        """Even if the lease is long, and its heartbeat is still fresh."""
        async with _store(mongo_uri, database_name, "pod-0") as killed:
            key = await begin(killed)
            await killed.write_heartbeat(silent_after=timedelta(minutes=10))
            began = time.monotonic()
            async with (
                _orphan(client, database_name, key, of="pod-0"),
                _store(mongo_uri, database_name, "pod-0") as store,
            ):
                assert time.monotonic() - began < 5
                await committed(store.commit(a_changeset(await head_of(store, key), an_event("free again"))))

    async def test_the_successor_is_no_sign_of_life_of_the_killed_one(
        self, mongo_uri: str, database_name: str, client: Client
    ) -> None:
        """A lapse that is judged before its first heartbeat counts: the killed process was not paused."""
        async with _store(mongo_uri, database_name, "pod-0") as killed:
            await killed.write_heartbeat(silent_after=timedelta(milliseconds=1))
            before = await client[database_name].replicas.find_one({"_id": "pod-0"})
            async with _store(mongo_uri, database_name, "pod-0"):
                after = await client[database_name].replicas.find_one({"_id": "pod-0"})
        assert before is not None
        assert after is not None
        assert after["process"] not in (None, before["process"])

    async def test_the_successor_of_one_that_has_been_silent_starts_at_once(
        self, mongo_uri: str, database_name: str, client: Client
    ) -> None:
        long_ago = datetime.now(UTC) - timedelta(minutes=5)
        await client[database_name].replicas.insert_one({"_id": "pod-0", "at": long_ago, "sessions": []})
        began = time.monotonic()
        async with _store(mongo_uri, database_name, "pod-0"):
            assert time.monotonic() - began < 1

    async def test_of_two_that_start_at_the_same_time_one_is_refused(
        self, mongo_uri: str, database_name: str, client: Client
    ) -> None:
        """Also after both have watched a heartbeat that did not move."""
        for before in ([], [{"_id": "pod-0", "at": datetime.now(UTC), "silent_after": 2_000, "sessions": []}]):
            await client[database_name].replicas.delete_many({})
            if before:
                await client[database_name].replicas.insert_many(before)
            stores = [MongoStore(mongo_uri, database=database_name, codec=TextCodec(), replica="pod-0") for _ in "ab"]
            starts = [asyncio.create_task(_serve(store)) for store in stores]
            refused, serving = await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
            assert [type(start.exception()) for start in refused] == [NameTaken]
            assert len(serving) == 1
            serving.pop().cancel()
            for store in stores:
                await store.close()

    async def test_one_that_was_frozen_while_its_successor_started_is_reported_once(
        self, mongo_uri: str, database_name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Both are alive then. The fences keep their turns apart."""
        stores = [MongoStore(mongo_uri, database=database_name, codec=TextCodec(), replica="pod-0") for _ in range(2)]
        for store in stores:
            await store.open()
            await store.write_heartbeat(silent_after=timedelta(milliseconds=1))
        assert "another process runs" not in caplog.text
        for store in stores * 2:
            await store.write_heartbeat(silent_after=LEASE)
        assert caplog.text.count("another process runs as replica pod-0") == 2
        for store in stores:
            await store.close()

    async def test_one_that_has_ended_in_order_leaves_its_name(self, mongo_uri: str, database_name: str) -> None:
        async with _store(mongo_uri, database_name, "pod-0") as first:
            await first.write_heartbeat(silent_after=LEASE)
        began = time.monotonic()
        async with _store(mongo_uri, database_name, "pod-0"):
            assert time.monotonic() - began < 1


async def _serve(store: MongoStore) -> None:
    await store.open()
    await _beat(store)


async def _beat(store: MongoStore) -> None:
    while True:
        await store.write_heartbeat(silent_after=LEASE)
        await asyncio.sleep(heartbeat_interval(LEASE).total_seconds())


async def test_a_replica_that_leaves_ends_what_it_could_not_finish(
    mongo_uri: str, database_name: str, client: Client
) -> None:
    async with _store(mongo_uri, database_name, "other") as other, contextlib.AsyncExitStack() as stack:
        key = await begin(other)
        async with _store(mongo_uri, database_name, "leaving") as store:
            await committed(store.commit(a_changeset(await head_of(store, key), an_event("before"))))
            await stack.enter_async_context(_orphan(client, database_name, key, of="leaving"))
        assert await client[database_name].replicas.find_one({"_id": "leaving"}) is None
        await committed(other.commit(a_changeset(await head_of(other, key), an_event("free again"))))


async def test_a_session_that_the_database_forgot_is_announced_again(
    mongo_uri: str, database_name: str, client: Client
) -> None:
    connection = Connection(mongo_uri, database=database_name, operation=LONG, schema=SCHEMA)
    orphans = Orphans(connection, replica="busy", most_sessions=4)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        sessions = [await stack.enter_async_context(connection.session()) for _ in range(5)]
        names = [bytes(session.delegate.session_id["id"]) for session in sessions]
        for session in sessions:
            await orphans.announce(session)
        assert await _announced(client, database_name, of="busy") == names[1:]
        await orphans.announce(sessions[4])
        assert await _announced(client, database_name, of="busy") == names[1:], "it is known already"
        await orphans.announce(sessions[0])
        assert await _announced(client, database_name, of="busy") == [*names[2:], names[0]]


async def _announced(client: Client, database: str, *, of: str) -> list[bytes]:
    replica = await client[database].replicas.find_one({"_id": of})
    assert replica is not None
    return list(replica["sessions"])


async def test_what_is_announced_is_little_and_goes_with_the_replica(
    mongo_uri: str, database_name: str, client: Client
) -> None:
    replicas = client[database_name].replicas
    async with _store(mongo_uri, database_name, "pod-0") as store:
        key = await begin(store)
        for number in range(10):
            await committed(store.commit(a_changeset(await head_of(store, key), an_event(str(number)))))
        announced = await replicas.find_one({"_id": "pod-0"})
        assert announced is not None
        assert len(announced["sessions"]) <= 2, "the driver uses its sessions again"
    assert await replicas.find_one({"_id": "pod-0"}) is None


async def test_a_replica_that_is_silent_for_too_long_delays_no_other(
    mongo_uri: str, database_name: str, client: Client
) -> None:
    """It owned nothing: no lapsed lease shows that it is dead."""
    replicas = client[database_name].replicas
    async with _store(mongo_uri, database_name, "alive") as store, _store(mongo_uri, database_name, "silent") as dead:
        key = await begin(store)
        async with _orphan(client, database_name, key, of="silent"):
            await dead.write_heartbeat(silent_after=SHORT)
            await until(lambda: _swept(store, client, database_name))
            await committed(store.commit(a_changeset(await head_of(store, key), an_event("free again"))))
        replica = await replicas.find_one({"_id": "silent"})
        assert replica is not None
        assert (replica["sessions"], replica["ended"]) == ([], True)


async def test_a_replica_with_a_fresh_heartbeat_is_left_alone(
    mongo_uri: str, database_name: str, client: Client
) -> None:
    async with _store(mongo_uri, database_name, "alive") as store, _store(mongo_uri, database_name, "other") as other:
        key = await begin(other)
        await committed(other.commit(a_changeset(await head_of(other, key), an_event())))
        await other.write_heartbeat(silent_after=LONG)
        await store.requeue_lapsed()
        replica = await client[database_name].replicas.find_one({"_id": "other"})
        assert replica is not None
        assert replica["sessions"]


async def test_a_replica_whose_transactions_were_ended_registers_again(
    mongo_uri: str, database_name: str, client: Client
) -> None:
    replicas = client[database_name].replicas
    async with _store(mongo_uri, database_name, "alive") as store, _store(mongo_uri, database_name, "frozen") as frozen:
        key = await begin(frozen)
        await committed(frozen.commit(a_changeset(await head_of(frozen, key), an_event("before"))))
        await frozen.write_heartbeat(silent_after=SHORT)
        await until(lambda: _swept(store, client, database_name, replica="frozen"))
        await frozen.write_heartbeat(silent_after=LONG)
        await committed(frozen.commit(a_changeset(await head_of(frozen, key), an_event("after"))))
        replica = await replicas.find_one({"_id": "frozen"})
        assert replica is not None
        assert replica["sessions"]
        assert "ended" not in replica


@pytest.mark.parametrize("has_document", [True, False])
async def test_a_replica_announces_again_what_a_restored_database_forgot(
    mongo_uri: str, database_name: str, client: Client, has_document: bool
) -> None:
    replicas = client[database_name].replicas
    async with _store(mongo_uri, database_name, "pod-0") as store:
        key = await begin(store)
        await store.write_heartbeat(silent_after=LONG)
        copy = await replicas.find_one({"_id": "pod-0"})
        assert copy is not None
        await store.write_heartbeat(silent_after=LONG)
        await committed(store.commit(a_changeset(await head_of(store, key), an_event("before"))))
        announced = await _announced(client, database_name, of="pod-0")
        await store.write_heartbeat(silent_after=LONG)
        await committed(store.commit(a_changeset(await head_of(store, key), an_event("not restored"))))
        assert await _announced(client, database_name, of="pod-0") == announced, "once is enough"
        await replicas.delete_one({"_id": "pod-0"})
        if has_document:
            await replicas.insert_one({**copy, "sessions": []})
        await store.write_heartbeat(silent_after=LONG)
        await committed(store.commit(a_changeset(await head_of(store, key), an_event("after"))))
        assert set(await _announced(client, database_name, of="pod-0")) & set(announced)


async def _swept(store: MongoStore, client: Client, database: str, *, replica: str = "silent") -> bool:
    await store.requeue_lapsed()
    document = await client[database].replicas.find_one({"_id": replica})
    return document is not None and "ended" in document
