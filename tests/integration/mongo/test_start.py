"""The requirements on the database, and the error of every call without one."""

import asyncio
import logging
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from tests.builders import AGENT, a_first_event, a_request, a_session, a_session_key, an_event
from tests.contracts.stores import LONG, TextCodec, a_changeset, begin, head_of, lapsed_approvals, until
from tests.integration.mongo.conftest import Client, FailPoint, NewStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Cancel, Head, LogEnd
from turnkeeper.store.embedded import find_mongod
from turnkeeper.store.filters import ApprovalFilter, SessionFilter
from turnkeeper.store.mongo.indexes import INDEXES, UnfitDatabase
from turnkeeper.store.mongo.store import MongoStore

LIFETIME = "transactionLifetimeLimitSeconds"


@pytest_asyncio.fixture
async def single_server(tmp_path: Path) -> AsyncIterator[str]:
    """Starts a mongod that is not a replica set."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(find_mongod()), "--dbpath", str(tmp_path), "--port", str(port), "--bind_ip", "127.0.0.1"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
            [*command, "--nounixsocket"], stdout=log
        )
    uri = f"mongodb://127.0.0.1:{port}/"
    try:
        async with AsyncMongoClient[dict[str, object]](uri, serverSelectionTimeoutMS=100) as client:

            async def answers() -> bool:
                try:
                    await client.admin.command("ping")
                except PyMongoError:
                    return False
                return True

            await until(answers, within=30)
        yield uri
    finally:
        process.kill()
        process.wait()


async def test_a_single_server_is_refused_at_the_start(single_server: str) -> None:
    store = MongoStore(single_server, database="any", codec=TextCodec())
    began = time.monotonic()
    with pytest.raises(UnfitDatabase, match="replica set"):
        await store.open(wait=timedelta(seconds=60))
    assert time.monotonic() - began < 3, "waiting does not help"
    await store.close()


async def test_every_start_finds_the_indexes_made(store: MongoStore, client: Client, database_name: str) -> None:
    await store.open()
    for collection, models in INDEXES.items():
        names = set(await client[database_name][collection].index_information())
        assert names == {"_id_", *(model.document["name"] for model in models)}


async def test_an_index_of_another_form_stops_the_start(mongo_uri: str, client: Client) -> None:
    name = f"turnkeeper_test_{secrets.token_hex(6)}"
    await client[name]["turns"].create_index("state", name="page")
    store = MongoStore(mongo_uri, database=name, codec=TextCodec())
    with pytest.raises(UnfitDatabase, match="turns"):
        await store.open()
    await store.close()
    await client.drop_database(name)


async def test_long_transactions_are_warned_about(
    new_store: NewStore, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    before = (await client.admin.command({"getParameter": 1, LIFETIME: 1}))[LIFETIME]
    try:
        for limit, warnings in ((15, 0), (16, 1)):
            await client.admin.command({"setParameter": 1, LIFETIME: limit})
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                await new_store()
            assert len([record for record in caplog.records if LIFETIME in record.getMessage()]) == warnings
    finally:
        await client.admin.command({"setParameter": 1, LIFETIME: before})


async def test_an_address_cannot_weaken_the_driver_s_concerns(mongo_uri: str, database_name: str) -> None:
    weak = f"{mongo_uri}&w=1&journal=false&readConcernLevel=local&retryWrites=false"
    store = MongoStore(weak, database=database_name, codec=TextCodec())
    await store.open()
    await begin(store)
    await store.close()


def _every_call(store: MongoStore, head: Head) -> dict[str, Callable[[], Awaitable[object]]]:
    key = a_session_key()
    tenant = key.tenant
    return {
        "create_session": lambda: store.create_session(a_session(key), AGENT, event=a_first_event()),
        "commit": lambda: store.commit(a_changeset(head, an_event())),
        "snapshot": lambda: store.snapshot(key),
        "find_request": lambda: store.find_request(a_request(key).key),
        "request_cancel": lambda: store.request_cancel(key, Cancel(turn_id="turn")),
        "events": lambda: store.events(key, after=0, limit=5),
        "last_seqs": lambda: store.last_seqs([key]),
        "ends": lambda: store.ends([key]),
        "holds": lambda: store.holds(key, LogEnd(1)),
        "session": lambda: store.session(key),
        "sessions": lambda: store.sessions(tenant, SessionFilter(), limit=5, after=None),
        "turn": lambda: store.turn(key, "turn"),
        "turns": lambda: store.turns(key, states=(), limit=5, before=None),
        "call": lambda: store.call(key, "call"),
        "approval": lambda: store.approval(tenant, "approval"),
        "approvals": lambda: store.approvals(tenant, ApprovalFilter(), limit=5, after=None),
        "agent": lambda: store.agent(tenant, "name", "version"),
        "renew": lambda: store.renew(key, owner="one", fence=1, lease=LONG),
        "renew_all": lambda: store.renew_all({key: 1}, owner="one", lease=LONG),
        "cancelled_among": lambda: store.cancelled_among([key]),
        "claim": lambda: store.claim("one", lease=LONG),
        "requeue_lapsed": store.requeue_lapsed,
        "lapsed_approvals": lambda: lapsed_approvals(store),
        "active_sessions": store.active_sessions,
        "waiting_turns": store.waiting_turns,
        "pending_approvals": store.pending_approvals,
        "secret": lambda: store.secret("name"),
        "ping": store.ping,
    }


async def _unavailable(call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(ServiceUnavailable) as raised:
        await call()
    assert raised.value.message == ServiceUnavailable.__doc__


async def test_without_a_database_every_call_is_unavailable_in_the_services_own_words(store: MongoStore) -> None:
    head = await head_of(store, await begin(store))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    gone = MongoStore(
        f"mongodb://127.0.0.1:{port}/?directConnection=true",
        database="any",
        codec=TextCodec(),
        operation=timedelta(milliseconds=200),
    )
    await asyncio.gather(*(_unavailable(call) for call in _every_call(gone, head).values()))
    with pytest.raises(UnfitDatabase, match=f"no database answers at 127.0.0.1:{port}"):
        await gone.open()
    await gone.close()


@pytest.mark.parametrize("code", [10107, 64, 13], ids=["not-primary", "write-concern", "unauthorized"])
async def test_what_the_database_refuses_is_unavailable_without_its_words(
    new_store: NewStore, failing: FailPoint, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = await new_store(operation=timedelta(milliseconds=300))
    key = await begin(store)
    changeset = a_changeset(await head_of(store, key), an_event("canary"))
    commands = ["update", "find", "aggregate"]
    async with failing(commands, errorCode=code):
        await asyncio.gather(
            _unavailable(lambda: store.commit(changeset)),
            _unavailable(lambda: store.turn(key, "canary")),
            _unavailable(lambda: store.renew(SessionKey(key.tenant, "canary"), owner="canary", fence=1, lease=LONG)),
        )
    assert "canary" not in caplog.text
