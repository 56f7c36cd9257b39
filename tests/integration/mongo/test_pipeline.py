"""The commands of a transaction are sent together, and a driver that cannot do that gets one after the other."""

import asyncio
import runpy
import sys
from functools import partial
from typing import Any, Final

import pymongo
import pytest
from pymongo import monitoring
from pymongo.errors import ProtocolError

from tests.builders import a_turn, an_event
from tests.contracts.stores import TextCodec, a_changeset, begin, head_of
from tests.integration.mongo.batches import HELD_MS, assert_stored, next_changeset, until_sent
from tests.integration.mongo.commands import Recorder, name_of
from tests.integration.mongo.conftest import Client, FailPoint, NewStore
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Conflict
from turnkeeper.store.mongo.client import ClientSession, Document
from turnkeeper.store.mongo.documents import SCHEMA
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.mongo.transactions import pipeline
from turnkeeper.store.mongo.transactions.writes import Obstacle, TransactionStopped, Writes

WRONG: Final = {"code": 91, "errmsg": "shutting down"}


@pytest.fixture(params=["together", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CAN_SEND_TOGETHER", request.param == "together")


def test_the_locked_driver_was_tried() -> None:
    assert pipeline.CAN_SEND_TOGETHER, "try the new version's private parts, then name it in pipeline.TRIED"


def test_nothing_private_is_used_of_another_version_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lack whole modules, and what it has may take other parameters."""
    monkeypatch.setattr(pymongo, "version_tuple", (4, 21, 0))
    for name in ("_telemetry", "helpers_shared", "message"):
        monkeypatch.delattr(pymongo, name)
        monkeypatch.setitem(sys.modules, f"pymongo.{name}", None)
    assert not runpy.run_path(pipeline.__file__)["CAN_SEND_TOGETHER"]


async def test_no_command_waits_for_the_reply_to_the_one_before(
    store: MongoStore, recorder: Recorder, failing: FailPoint
) -> None:
    changeset = await next_changeset(store, await begin(store))
    async with failing(["update"], times=1, blockConnection=True, blockTimeMS=HELD_MS):
        with recorder.recording() as commands:
            commit = asyncio.create_task(store.commit(changeset))
            await until_sent(recorder, "insert")
            assert not recorder.answered, "the update of the head is held up"
            result = await commit
    assert [name_of(command) for command in commands] == ["update", "insert", "insert", "commitTransaction"]
    await assert_stored(store, changeset, result)


@pytest.mark.usefixtures("way")
async def test_either_way_stores_the_same(store: MongoStore, recorder: Recorder) -> None:
    changeset = await next_changeset(store, await begin(store))
    with recorder.recording() as commands:
        result = await store.commit(changeset)
    assert [name_of(command) for command in commands] == ["update", "insert", "insert", "commitTransaction"]
    await assert_stored(store, changeset, result)


class _Connections(monitoring.ConnectionPoolListener):
    """Counts how often a connection is taken. Clients that were there before do not count."""

    taken = 0

    def connection_checked_out(self, event: monitoring.ConnectionCheckedOutEvent) -> None:
        self.taken += 1

    def _ignore(self, event: object) -> None:
        pass

    connection_created = connection_ready = connection_closed = connection_checked_in = _ignore
    connection_check_out_started = connection_check_out_failed = _ignore
    pool_created = pool_ready = pool_cleared = pool_closed = _ignore


async def test_a_transaction_and_its_commit_take_one_connection_once(new_store: NewStore) -> None:
    connections = _Connections()
    monitoring.register(connections)
    store = await new_store()
    changeset = await next_changeset(store, await begin(store))
    before = connections.taken
    result = await store.commit(changeset)
    assert connections.taken == before + 1
    await assert_stored(store, changeset, result)


@pytest.mark.parametrize("how", [{"errorCode": 91}, {"closeConnection": True}, {"writeConcernError": WRONG}], ids=str)
async def test_a_commit_that_is_not_answered_well_is_sent_again(
    store: MongoStore, recorder: Recorder, failing: FailPoint, how: dict[str, Any]
) -> None:
    changeset = await next_changeset(store, await begin(store))
    async with failing(["commitTransaction"], times=1, **how):
        with recorder.recording() as commands:
            result = await store.commit(changeset)
    assert [name_of(command) for command in commands].count("commitTransaction") == 2
    await assert_stored(store, changeset, result)


@pytest.mark.usefixtures("way")
async def test_either_way_stores_nothing_after_a_command_that_missed(store: MongoStore) -> None:
    key = await begin(store)
    first, second = await next_changeset(store, key), await next_changeset(store, key)
    await assert_stored(store, first, await store.commit(first))
    assert await store.commit(second) == Conflict()
    assert await store.turn(key, second.new_turns[0].id) is None


@pytest.mark.usefixtures("way")
async def test_either_way_ends_well_when_the_database_refuses_one_command(
    store: MongoStore, failing: FailPoint
) -> None:
    changeset = await next_changeset(store, await begin(store))
    async with failing(["insert"], times=1, errorCode=112, errorLabels=["TransientTransactionError"]):
        await assert_stored(store, changeset, await store.commit(changeset))


@pytest.mark.usefixtures("way")
async def test_either_way_a_broken_connection_is_not_used_again(store: MongoStore, failing: FailPoint) -> None:
    keys = [await begin(store) for _ in range(4)]
    async with failing(["insert"], times=1, closeConnection=True):
        for key in keys:
            changeset = await next_changeset(store, key)
            await assert_stored(store, changeset, await store.commit(changeset))


@pytest.mark.usefixtures("way")
async def test_either_way_the_first_reply_that_is_not_well_decides(store: MongoStore) -> None:
    """After a duplicate key the database refuses all further commands, for another reason."""
    key = await begin(store)
    turn = a_turn(key)
    stored = a_changeset(await head_of(store, key), new_turns=(turn,))
    await assert_stored(store, stored, await store.commit(stored))
    connection, writer = store._connection, object()  # noqa: SLF001 - sends these commands alone
    writes = Writes(schema=SCHEMA).of(writer)
    writes.insert("turns", await connection.turns.find_one({"id": turn.id}) or {})
    writes.insert("requests", {"_id": "another"})
    async with connection.session() as session, session.start_transaction():
        with pipeline.CommandExchange(connection, session) as exchange, pytest.raises(TransactionStopped) as stopped:
            await connection.in_thread(partial(writes.send, exchange))
        await session.abort_transaction()
    assert (stopped.value.obstacle, stopped.value.refused_writer) == (Obstacle.MISS, writer)


async def test_a_connection_with_replies_that_were_not_read_is_not_used_again(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = store._connection  # noqa: SLF001 - sends these commands alone
    writes = Writes(schema=SCHEMA)
    writes.insert("turns", {"_id": "one"})
    writes.insert("requests", {"_id": "another"})

    def send_and_ask(session: ClientSession) -> Document:
        """Returns the reply to a ping by the connection that was used last."""
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "_MESSAGE", 1)  # every reply is of another kind
            with pipeline.CommandExchange(connection, session) as exchange, pytest.raises(ProtocolError):
                writes.send(exchange)
        reply: Document = connection.client.delegate.admin.command("ping")
        return reply

    async with connection.session() as session, session.start_transaction():
        assert (await connection.in_thread(partial(send_and_ask, session)))["ok"]
        await session.abort_transaction()


@pytest.mark.usefixtures("way")
async def test_either_way_sends_what_is_too_large_for_one_command_in_parts(
    new_store: NewStore, recorder: Recorder
) -> None:
    store = await new_store()
    key = await begin(store)
    events = [an_event("x" * 250_000) for _ in range(80)]
    changeset = a_changeset(await head_of(store, key), *events, new_turns=(a_turn(key),))
    with recorder.recording() as commands:
        result = await store.commit(changeset)
    assert [name_of(command) for command in commands].count("insert") == 3, "two parts of the events, and the turn"
    await assert_stored(store, changeset, result)


async def test_replies_that_come_byte_by_byte_are_read(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_MOST_BYTES", 1)
    changeset = await next_changeset(store, await begin(store))
    await assert_stored(store, changeset, await store.commit(changeset))


async def test_a_reply_to_something_else_ends_the_connection(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    changeset = await next_changeset(store, await begin(store))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_MESSAGE", 1)
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
    await assert_stored(store, changeset, await store.commit(changeset))


async def test_compressed_replies_are_read(
    mongo_uri: str, database_name: str, store: MongoStore, client: Client
) -> None:
    mark = "&" if "?" in mongo_uri else "?"
    other = MongoStore(f"{mongo_uri}{mark}compressors=zlib", database=database_name, codec=TextCodec())
    await other.open()
    try:
        changeset = await next_changeset(store, await begin(store))
        before = await _bytes_compressed(client)
        result = await other.commit(changeset)
        assert await _bytes_compressed(client) > before
    finally:
        await other.close()
    await assert_stored(store, changeset, result)


async def _bytes_compressed(client: Client) -> int:
    """Returns the bytes of replies that the database has compressed."""
    status = await client.admin.command("serverStatus")
    compressed: int = status["network"]["compression"]["zlib"]["compressor"]["bytesIn"]
    return compressed
