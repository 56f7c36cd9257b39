"""A database that a server cannot start on: each reason is one sentence that tells what to do, in time."""

import asyncio
import secrets
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import bson
import pytest
import pytest_asyncio

from tests.contracts.stores import TextCodec
from tests.demo.ports import free_port
from tests.fail_points import Client, fail_point
from tests.guarded_database import guarded_database
from tests.listening import listening
from turnkeeper.store.mongo import seeds
from turnkeeper.store.mongo.indexes import UnfitDatabase
from turnkeeper.store.mongo.store import MongoStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON = 3.0
"""Seconds in which a mistake in the address is told: waiting does not help."""
GONE = "mongodb://127.0.0.1:1/?replicaSet=orders"


async def why_not(uri: str, *, database: str = "any", operation: float = 5.0, wait: float = 0.0) -> str:
    """Opens a store. Returns the sentence that it fails with."""

    async def start() -> None:
        store = MongoStore(uri, database=database, codec=TextCodec(), operation=timedelta(seconds=operation))
        try:
            await store.open(wait=timedelta(seconds=wait))
        finally:
            await store.close()

    with pytest.raises(UnfitDatabase) as refused:
        await start()
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Starts a replica set `orders` that asks for a password. Yields HOST:PORT; ada may all, bob may only read."""
    async with guarded_database(tmp_path_factory.mktemp("guarded")) as database:
        yield database.at


async def test_a_wrong_password(guarded: str) -> None:
    began = time.monotonic()
    sentence = await why_not(f"mongodb://ada:a-password@{guarded}/?replicaSet=orders", wait=60)
    assert time.monotonic() - began < SOON
    assert sentence.startswith(f"{guarded} refuses the user or the password of MONGODB_URI: check both")
    assert "a-password" not in sentence


async def test_no_password_where_one_is_needed(guarded: str) -> None:
    assert "MONGODB_URI names no user, or one without rights on the database any: " in await why_not(
        f"mongodb://{guarded}/?replicaSet=orders"
    )


async def test_a_wrong_set_name(guarded: str) -> None:
    began = time.monotonic()
    sentence = await why_not(f"mongodb://ada:p%40ss%2Fword@{guarded}/?replicaSet=order", wait=60)
    assert time.monotonic() - began < SOON
    assert sentence == (
        f"{guarded} is in the replica set orders, and MONGODB_URI asks for order: write replicaSet=orders"
    )


async def test_a_user_who_may_only_read(guarded: str) -> None:
    sentence = await why_not(f"mongodb://bob:bob@{guarded}/?replicaSet=orders")
    assert sentence.startswith("the user of MONGODB_URI lacks rights on the database any: ")
    assert sentence.endswith("; grant them, or the role readWrite there")


async def test_one_host_that_is_well_is_enough(guarded: str, mongo_uri: str) -> None:
    """A host of the list may be down, or belong elsewhere by now."""
    uri = f"mongodb://ada:p%40ss%2Fword@127.0.0.1:1,{guarded}/?replicaSet=orders"
    name = f"turnkeeper_test_{secrets.token_hex(6)}"
    store = MongoStore(uri, database=name, codec=TextCodec())
    await store.open()
    await store.close()


async def test_a_dead_host() -> None:
    sentence = await why_not(GONE, operation=0.5)
    assert sentence == (
        "no database answers at 127.0.0.1:1: the connection is refused. Check MONGODB_URI, and that it runs"
    )


async def test_a_database_that_comes_up_late_is_waited_for(guarded: str, caplog: pytest.LogCaptureFixture) -> None:
    """Both may be started at the same time."""
    port = free_port()
    uri = f"mongodb://ada:p%40ss%2Fword@127.0.0.1:{port}/?replicaSet=orders"
    name = f"turnkeeper_test_{secrets.token_hex(6)}"
    store = MongoStore(uri, database=name, codec=TextCodec(), operation=timedelta(milliseconds=600))
    opening = asyncio.create_task(store.open(wait=timedelta(seconds=60)))
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(opening), 0.9)  # longer than an operation
    line = "the start waits for the database, 60 s at most: no database answers at 127.0.0.1:"
    assert [record.getMessage()[: len(line)] for record in caplog.records if "waits" in record.getMessage()] == [line]
    async with relay(port, guarded):
        await opening
        await store.close()


@pytest.mark.parametrize("name", ["nowhere.invalid", "no..name", "x" * 64 + ".invalid"])
async def test_a_name_that_no_machine_has(name: str) -> None:
    sentence = await why_not(f"mongodb://{name}/", operation=0.2)
    assert f"at {name}:27017: this name cannot be resolved" in sentence


async def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    """A URI may name a file: the database on the same machine."""
    uri = f"mongodb://{str(tmp_path / 'none.sock').replace('/', '%2F')}/?replicaSet=orders"
    assert f"at {tmp_path}/none.sock: No such file or directory" in await why_not(uri, operation=0.2)


async def test_something_else_on_the_port() -> None:
    async with answering(lambda _: b"") as at:
        sentence = await why_not(f"mongodb://{at}/", operation=0.2)
    assert sentence.startswith(f"{at} accepts connections, but does not answer as a MongoDB: check its port")


async def test_tls_that_the_database_does_not_have(mongo_uri: str) -> None:
    at = mongo_uri.partition("://")[2].partition("/")[0]
    sentence = await why_not(f"mongodb://{at}/?tls=true", operation=0.2)
    assert sentence.startswith(f"{at} answers, but TLS fails (")


async def test_a_version_that_the_driver_does_not_support() -> None:
    hello = {"ok": 1, "ismaster": True, "maxWireVersion": 6, "minWireVersion": 0, "setName": "orders"}
    async with answering(lambda request: reply(request, hello)) as at:
        sentence = await why_not(f"mongodb://{at}/?replicaSet=orders")
    assert sentence == f"{at} has a version of MongoDB that the driver does not support: use 7 or 8"


async def test_a_set_without_a_primary() -> None:
    hello = {"ok": 1, "secondary": True, "maxWireVersion": 21, "minWireVersion": 0, "setName": "orders", "me": "a:1"}
    async with answering(lambda request: reply(request, hello)) as at:
        sentence = await why_not(f"mongodb://{at}/?replicaSet=orders", operation=0.5)
    assert sentence.startswith("the replica set orders has no primary: a majority of its members must be up")


async def test_a_set_whose_members_are_named_by_addresses_of_another_network(guarded: str) -> None:
    hello = {"ok": 1, "secondary": True, "maxWireVersion": 21, "minWireVersion": 0, "setName": "orders"}
    hello |= {"primary": "mongo-1.invalid:27017", "hosts": ["mongo-1.invalid:27017"], "me": "mongo-1.invalid:27017"}
    async with answering(lambda request: reply(request, hello)) as at:
        sentence = await why_not(f"mongodb://{at}/?replicaSet=orders", operation=1)
    assert "its members must be named by addresses that are valid here" in sentence
    assert "was not reached from this machine within 1 s" in sentence, "the time may be too short, too"
    assert "--operation-time" in sentence


async def test_a_set_that_was_not_initiated() -> None:
    hello = {"ok": 1, "ismaster": False, "maxWireVersion": 21, "minWireVersion": 0, "isreplicaset": True}
    async with answering(lambda request: reply(request, hello)) as at:
        assert "run rs.initiate() there once" in await why_not(f"mongodb://{at}/", operation=0.2)


async def test_a_majority_that_does_not_acknowledge(mongo_uri: str) -> None:
    async with Client(mongo_uri) as client, fail_point(client, "create", blockConnection=True, blockTimeMS=2_000):
        sentence = await why_not(mongo_uri, database=f"turnkeeper_test_{secrets.token_hex(6)}", operation=1)
    assert sentence.startswith("the database answers, but a write was not acknowledged by a majority")


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("postgres://host/", "MONGODB_URI is not the address of a MongoDB: write mongodb://"),
        ("mongodb://ada:p@ss/word@host:x/", "MONGODB_URI is not the address of a MongoDB: write mongodb://"),
        ("mongodb://host:99999/", "MONGODB_URI is not the address of a MongoDB: write mongodb://"),
        (
            "mongodb://host/?tls=true&tlsCAFile=/nowhere.pem",
            "tlsCAFile of MONGODB_URI names a file that cannot be read",
        ),
        ("mongodb://host/?tls=perhaps", "MONGODB_URI has the option tls, which the driver does not know"),
        ("mongodb://host/?authMechanism=PASSWORD", "MONGODB_URI has the option authMechanism, which the driver"),
        ("mongodb://host/?replcaSet=orders", "MONGODB_URI has the option replcaSet, which the driver does not know"),
        ("mongodb+srv://nowhere.invalid/", "the DNS records of MONGODB_URI cannot be read"),
        ("mongodb+srv://one.invalid:27017/", "MONGODB_URI must name one host, without a port"),
        ("mongodb+srv://one.invalid,two.invalid/?tls=true", "MONGODB_URI must name one host, without a port"),
        ("mongodb+srv://one/?tls=true&loadBalanced=true&directConnection=true", "options of MONGODB_URI contradict"),
        ("mongodb://host/?=orders", "MONGODB_URI is not the address of a MongoDB: write mongodb://"),
        ("mongodb://host/?directConnection=true&loadBalanced=true", "options of MONGODB_URI contradict each other"),
        ("mongodb://host/?tlsCRLFile=/etc/hostname&tls=false", "options of MONGODB_URI contradict each other"),
    ],
)
async def test_an_address_that_no_driver_can_use(uri: str, sentence: str) -> None:
    assert (await why_not(uri)).startswith(sentence)


@pytest.mark.parametrize(
    ("uri", "hosts"),
    [
        ("mongodb://one:1,two:2/?replicaSet=orders", "one:1,two:2"),
        ("mongodb://ada:p%40ss%2Fword@one/orders", "one"),
        ("mongodb+srv://ada:p@ssword@orders.example.com?tls=true", "orders.example.com"),
    ],
)
async def test_the_hosts_are_named_without_the_password(uri: str, hosts: str) -> None:
    assert seeds.hosts_of(uri) == hosts


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://ada:12?secret@host/",
        "mongodb://ada:12?secret=word@host/?tls=true",
        "mongodb://ada:a/b?c&secret@host/",
        "mongodb+srv://ada:a?secret@host/",
    ],
)
async def test_no_part_of_a_password_that_is_not_escaped_is_shown(uri: str) -> None:
    """What is behind its question mark looks like the name of an option."""
    sentence = await why_not(uri)
    assert sentence.startswith("MONGODB_URI is not the address of a MongoDB: write mongodb://")
    assert "secret" not in sentence


@pytest.mark.parametrize(
    "login",
    [
        "ada@{}/?authMechanism=MONGODB-X509&tls=true",
        "ada@{}/orders?authMechanism=MONGODB-X509&tls=true",
        "ada:word@{}/?authMechanism=PLAIN",
        "ada:word@{}/orders?authmechanism=PLAIN",
        "ada:word@{}/orders?authmechanism=SCRAM-SHA-1",
        "ada:word@{}/?authMechanism=MONGODB-AWS",
    ],
)
async def test_each_way_to_log_in_gets_as_far_as_the_host(login: str) -> None:
    """Some take no password, and some no other source than $external."""
    async with answering(lambda _: b"") as at:
        assert (await why_not(f"mongodb://{login.format(at)}", operation=0.2)).startswith(f"{at} a")


async def test_a_certificate_file_that_holds_none(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("not a certificate")
    assert "MONGODB_URI" in await why_not(f"mongodb://127.0.0.1:1/?tls=true&tlsCAFile={empty}", operation=0.2)


async def test_a_name_that_a_database_cannot_have(mongo_uri: str) -> None:
    assert "a database cannot have the name 'or ders'" in await why_not(mongo_uri, database="or ders")


def reply(request: bytes, document: dict[str, Any]) -> bytes:
    """Returns the database's reply to a command, in the form that the driver's first one expects (OP_REPLY)."""
    _, request_id, _, code = struct.unpack("<iiii", request[:16])
    body = bson.encode(document)
    if code == 2013:  # OP_MSG
        body, answered = bytes(5) + body, 2013
    else:
        body, answered = struct.pack("<iqii", 8, 0, 0, 1) + body, 1
    return struct.pack("<iiii", 16 + len(body), 1, request_id, answered) + body


@asynccontextmanager
async def answering(answer: Any) -> AsyncIterator[str]:
    """Serves one answer for each request that comes in one piece; an empty one is the end. Yields HOST:PORT."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while (request := await reader.read(65536)) and (answered := answer(request)):
                writer.write(answered)
                await writer.drain()

    async with listening(serve) as port:
        yield f"127.0.0.1:{port}"


@asynccontextmanager
async def relay(port: int, target: str) -> AsyncIterator[None]:
    """Passes connections to this port on to the target, as a container's published port does."""
    host, _, target_port = target.partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(target_port))
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(copy(reader, back))
                pumps.create_task(copy(there, writer))
        finally:
            back.transport.abort()

    async with listening(serve, port=port):
        yield


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
