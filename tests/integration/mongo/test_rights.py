"""The service's user needs exactly the rights of the shipped role: a missing one is named at the start."""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests.contracts.stores import TextCodec
from tests.guarded_database import ROLE_FILE, SERVICE, GuardedDatabase, guarded_database, shipped_privileges
from turnkeeper.store.mongo import rights
from turnkeeper.store.mongo.client import Connection
from turnkeeper.store.mongo.indexes import INDEXES, UnfitDatabase
from turnkeeper.store.mongo.store import MongoStore

DATABASE = "turnkeeper"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedDatabase]:
    async with guarded_database(tmp_path_factory.mktemp("guarded")) as database:
        yield database


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connection(guarded: GuardedDatabase) -> AsyncIterator[Connection]:
    async with connected(guarded.uri(SERVICE)) as connection:
        yield connection


@contextlib.asynccontextmanager
async def connected(uri: str) -> AsyncIterator[Connection]:
    connection = Connection(uri, database=DATABASE, operation=timedelta(seconds=5), schema=1)
    try:
        yield connection
    finally:
        await connection.close()


async def why_not(uri: str) -> str:
    """Opens a store. Returns the sentence that it fails with."""
    store = MongoStore(uri, database=DATABASE, codec=TextCodec())
    try:
        with pytest.raises(UnfitDatabase) as refused:
            await store.open()
    finally:
        await store.close()
    return str(refused.value)


def without(collection: str, action: str) -> list[dict[str, Any]]:
    """Returns the privileges of the shipped role less one."""
    return [
        {**privilege, "actions": [kept for kept in privilege["actions"] if (there, kept) != (collection, action)]}
        for privilege in shipped_privileges(DATABASE)
        for there in (privilege["resource"]["collection"],)
    ]


def test_the_shipped_role_is_the_one_that_the_start_checks() -> None:
    assert json.loads(ROLE_FILE.read_text()) == json.loads(json.dumps(rights.role(DATABASE)))
    assert {resource["collection"] for resource, _ in map(dict.values, shipped_privileges(DATABASE))} == {"", *INDEXES}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_role_that_lacks_one_right_is_refused_with_its_name(
    guarded: GuardedDatabase, connection: Connection
) -> None:
    await rights.check(connection)
    named = 0
    async with guarded.admin() as admin:
        for privilege in shipped_privileges(DATABASE):
            collection = privilege["resource"]["collection"]
            for action in privilege["actions"]:
                await admin.admin.command("updateRole", "turnkeeper", privileges=without(collection, action))
                with pytest.raises(UnfitDatabase) as refused:
                    await rights.check(connection)
                assert str(refused.value) == (
                    "the user of MONGODB_URI lacks rights on the database turnkeeper: "
                    f"{action} on {collection or 'all collections'}; grant them, or the role readWrite there"
                )
                named += 1
        await admin.admin.command("updateRole", "turnkeeper", privileges=shipped_privileges(""))
    assert named > 50
    await rights.check(connection)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_start_ends_with_what_is_missing(guarded: GuardedDatabase) -> None:
    sentence = await why_not(guarded.uri("bob:bob"))
    assert sentence == (
        "the user of MONGODB_URI lacks rights on the database turnkeeper: createCollection, insert on agents; "
        "createCollection, createIndex, insert, remove, update on approvals; createCollection, insert, update on "
        "audit_chains; createCollection, createIndex, insert, update on audit_records; others on 13 more collections; "
        "grant them, or the role readWrite there"
    )


@pytest.mark.parametrize(
    ("database", "roles"),
    [
        ("admin", ["root"]),
        ("admin", ["readWriteAnyDatabase"]),
        ("admin", [{"role": "readWrite", "db": DATABASE}]),
        (DATABASE, ["readWrite"]),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_the_common_roles_have_all_rights(guarded: GuardedDatabase, database: str, roles: list[Any]) -> None:
    async with guarded.admin() as admin:
        await admin[database].command("createUser", "common", pwd="common", roles=roles)
        try:
            async with connected(f"{guarded.uri('common:common')}&authSource={database}") as connection:
                await rights.check(connection)
        finally:
            await admin[database].command("dropUser", "common")


@pytest.mark.asyncio(loop_scope="module")
async def test_rights_on_another_database_do_not_count(guarded: GuardedDatabase) -> None:
    async with guarded.admin() as admin:
        await admin.admin.command("createUser", "other", pwd="other", roles=[{"role": "readWrite", "db": "other"}])
    assert re.search(
        "lacks rights on the database turnkeeper: changeStream, find,", await why_not(guarded.uri("other:other"))
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_a_database_that_knows_no_users_is_not_asked_for_rights(mongo_uri: str) -> None:
    async with connected(mongo_uri) as connection:
        await rights.check(connection)


def test_the_service_cannot_change_its_history() -> None:
    """The rights that the role does not have: an event's change, and the removal of records and seals."""
    granted = {
        (privilege["resource"]["collection"], action)
        for privilege in shipped_privileges(DATABASE)
        for action in privilege["actions"]
    }
    assert granted.isdisjoint(
        {("events", "update"), ("audit_records", "remove"), ("audit_seals", "update"), ("audit_seals", "remove")}
    )
    assert {action for _, action in granted} == {
        *("changeStream", "find", "listCollections", "createCollection", "createIndex", "insert", "remove", "update")
    }
