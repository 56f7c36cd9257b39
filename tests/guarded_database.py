"""A replica set that asks for a password, with a user for the service whose role is the shipped one."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pymongo import AsyncMongoClient

from tests.processes import until_call
from turnkeeper.child_processes import free_port
from turnkeeper.store.embedded import find_mongod

LEAST_RIGHTS: Final = "TURNKEEPER_TEST_LEAST_RIGHTS"
"""A variable: with it the servers of all tests have the user of least rights."""
ROLE_FILE: Final = Path(__file__).resolve().parents[1] / "deploy" / "mongodb" / "role.json"
SET: Final = "orders"
ADMIN: Final = "ada:p%40ss%2Fword"
SERVICE: Final = "turnkeeper:a-secret"
_START_TIME: Final = 40


@dataclass(frozen=True, slots=True)
class GuardedDatabase:
    """A running `mongod` with users."""

    at: str
    log: Path

    def uri(self, user: str = "") -> str:
        """Returns the address for a user, `NAME:PASSWORD`; for none, one without a login."""
        return f"mongodb://{user}{'@' if user else ''}{self.at}/?replicaSet={SET}"

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
        """Connects as the user who may do everything."""
        async with AsyncMongoClient[dict[str, Any]](self.uri(ADMIN)) as client:
            yield client


def shipped_privileges(database: str) -> Sequence[dict[str, Any]]:
    """Returns the privileges of the shipped role, on this database instead; "": on any."""
    privileges = json.loads(ROLE_FILE.read_text(encoding="utf-8"))["privileges"]
    return [{**privilege, "resource": {**privilege["resource"], "db": database}} for privilege in privileges]


@contextlib.asynccontextmanager
async def guarded_database(folder: Path, *options: str, prepared: bool = True) -> AsyncIterator[GuardedDatabase]:
    """Starts the database with these options of `mongod`, and ends it. SERVICE has the shipped role on any database.

    Not `prepared`, it is no replica set yet and has no users.
    """
    key, log, port = folder / "key", folder / "log", free_port()
    key.write_text("c2VjcmV0IG9mIHRoZSBzZXQ=")
    key.chmod(0o600)
    data = folder / "data"
    data.mkdir()
    command = [str(find_mongod()), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1"]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
            [*command, "--nounixsocket", "--replSet", SET, "--auth", "--keyFile", str(key), *options], stdout=output
        )
    database = GuardedDatabase(f"127.0.0.1:{port}", log)
    try:
        async with asyncio.timeout(_START_TIME):
            await (_prepare(database) if prepared else _until_up(database))
        yield database
    finally:
        process.kill()
        process.wait()


async def _until_up(database: GuardedDatabase) -> None:
    async with AsyncMongoClient[dict[str, Any]](f"mongodb://{database.at}/", directConnection=True) as client:
        await client.admin.command("hello")


async def _prepare(database: GuardedDatabase) -> None:
    """Makes the set and its users: the first one before any login is needed."""
    async with AsyncMongoClient[dict[str, Any]](f"mongodb://{database.at}/", directConnection=True) as client:
        await client.admin.command("replSetInitiate", {"_id": SET, "members": [{"_id": 0, "host": database.at}]})

        async def is_primary() -> bool:
            return bool((await client.admin.command("hello"))["isWritablePrimary"])

        await until_call(is_primary, timeout=30)
        await client.admin.command("createUser", "ada", pwd="p@ss/word", roles=["root"])
    async with database.admin() as client:
        await client.admin.command("createUser", "bob", pwd="bob", roles=["readAnyDatabase"])
        await client.admin.command("createRole", "turnkeeper", privileges=shipped_privileges(""), roles=[])
        name, _, password = SERVICE.partition(":")
        await client.admin.command("createUser", name, pwd=password, roles=["turnkeeper"])
