"""Examines a database without writing to it: what a start asks of it, a majority that acknowledges, its clock."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pymongo.errors import ConfigurationError, InvalidName, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from turnkeeper.store.mongo import indexes, rights, seeds
from turnkeeper.store.mongo.client import Connection
from turnkeeper.store.mongo.consistent_reads import ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A database on which a server can start."""

    hosts: str
    version: str
    """Of MongoDB."""
    ahead: timedelta
    """How far its clock is ahead of this machine's; less than zero if it is behind."""
    free: int | None
    """Free bytes of the disk that has the primary's data; None if the user may not ask."""


def _machine_clock() -> datetime:
    return datetime.now(UTC)


async def examine(
    uri: str, *, database: str, operation: timedelta, clock: Callable[[], datetime] = _machine_clock
) -> Examined:
    """Returns what the database is, or raises UnfitDatabase with what to do. Waits for nothing but answers.

    A linearizable read proves that a majority of the members acknowledges: the primary stores an entry of its own.
    """
    seeds.check_options(uri)
    try:
        connection = Connection(uri, database=database, operation=operation, schema=0)
    except InvalidName:
        raise indexes.UnfitDatabase(f"a database cannot have the name {database!r}: choose another one") from None
    except (ConfigurationError, ValueError, OSError):
        raise indexes.UnfitDatabase(seeds.why_unusable(uri)) from None
    try:
        await seeds.check(uri, patience=0)
        await rights.check(connection)
        await indexes.check_replicated(connection)
        linearizable = connection.heads.with_options(read_concern=ReadConcern("linearizable"))
        await linearizable.find_one(ABSENT, {"_id": 1})
        before = clock()
        hello = await connection.client.admin.command("hello")
        ahead = hello["localTime"].replace(tzinfo=UTC) - (before + (clock() - before) / 2)
        free = await _free(connection)
        version = (await connection.client.server_info())["version"]
    except PyMongoError as error:
        raise indexes.UnfitDatabase(indexes.why_unprepared(error, connection)) from None
    finally:
        await connection.close()
    return Examined(hosts=seeds.hosts_of(uri), version=version, ahead=ahead, free=free)


async def _free(connection: Connection) -> int | None:
    """Returns the free bytes of the primary's disk; None if it does not tell. A database without data does not."""
    for database in (connection.database, connection.client.admin):
        try:
            stats = await database.command("dbStats")
        except OperationFailure as error:
            if error.code not in indexes.NOT_ALLOWED:
                raise
            continue
        if total := stats.get("fsTotalSize"):
            return int(total - stats["fsUsedSize"])
    return None
