"""The store on MongoDB, assembled from its parts."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from datetime import timedelta
from functools import partial
from typing import Final

import pymongo
from pymongo.errors import ConfigurationError, DuplicateKeyError, InvalidName, PyMongoError

from turnkeeper.store.contract import EventCodec, StoredHeartbeat
from turnkeeper.store.mongo import indexes, rights, seeds
from turnkeeper.store.mongo.agent_documents import AgentDocuments
from turnkeeper.store.mongo.audits import Audits
from turnkeeper.store.mongo.change_stream import ChangeStream
from turnkeeper.store.mongo.changesets import Changesets
from turnkeeper.store.mongo.claims import Claims
from turnkeeper.store.mongo.client import DISCONNECT_S, Connection, RecordCall
from turnkeeper.store.mongo.consistent_reads import ConsistentReads
from turnkeeper.store.mongo.delegations import DelegationDocuments
from turnkeeper.store.mongo.documents import SCHEMA
from turnkeeper.store.mongo.forks import ForkWrites
from turnkeeper.store.mongo.late_results import LateResultWrites
from turnkeeper.store.mongo.log_ends import EndReads
from turnkeeper.store.mongo.lost_owners import LostOwners
from turnkeeper.store.mongo.operations import OperationDocuments
from turnkeeper.store.mongo.previews import Previews
from turnkeeper.store.mongo.purges import Purges
from turnkeeper.store.mongo.reads import Reads
from turnkeeper.store.mongo.renewer import MongoRenewer
from turnkeeper.store.mongo.session_creation import SessionCreation
from turnkeeper.store.mongo.shared_reads import SharedReads
from turnkeeper.store.mongo.shares import Shares
from turnkeeper.store.mongo.snapshots import Snapshots
from turnkeeper.store.mongo.sweeps import Sweeps
from turnkeeper.store.mongo.transactions.group_commit import GroupCommit
from turnkeeper.store.mongo.transactions.orphans import Orphans
from turnkeeper.store.mongo.transactions.outcomes import Outcomes
from turnkeeper.store.mongo.transactions.tasks import Tasks
from turnkeeper.store.mongo.transactions.transaction import Transactions
from turnkeeper.store.mongo.trims import Trims
from turnkeeper.store.mongo.unreadable import RecordUnreadable
from turnkeeper.store.notifications import Notification

SECRET_BYTES: Final = 32
"""Bytes of a new secret."""
PATIENCE: Final = timedelta(seconds=5)
"""How long `close` waits for commits under way."""


class MongoStore(
    SessionCreation,
    ForkWrites,
    Changesets,
    LateResultWrites,
    Claims,
    Sweeps,
    Trims,
    Purges,
    Snapshots,
    Reads,
    EndReads,
    Previews,
    Audits,
    OperationDocuments,
    DelegationDocuments,
):
    """Implements `Store` and `Retention` on a MongoDB replica set. Used on one event loop, from `open` to `close`."""

    def __init__(  # noqa: PLR0913 - what its database and its replica are
        self,
        uri: str,
        *,
        database: str,
        codec: EventCodec,
        operation: timedelta = timedelta(seconds=5),
        replica: str = "",
        schema: int = SCHEMA,
        record_call: RecordCall | None = None,
        record_unreadable: RecordUnreadable | None = None,
    ) -> None:
        """`operation` limits each call to the database, and each commit with all its retries.

        `replica` is the owner that this replica's leases name: other replicas find its open transactions by it, and
        abort them after its death. `schema` as in Connection. `record_call` is called with the duration of each
        command, `record_unreadable` for each document that only a newer version can read.

        Raises UnfitDatabase if `uri` is not an address, without the driver's text, which may quote a password.
        """
        seeds.check_options(uri)
        self._uri = uri
        try:
            self._connection = Connection(
                uri,
                database=database,
                operation=operation,
                schema=schema,
                record_call=record_call,
                record_unreadable=record_unreadable,
            )
            self._change_stream = ChangeStream(
                uri, database=database, replica=replica, unreadable=self._connection.unreadable
            )
        except InvalidName:
            raise indexes.UnfitDatabase(f"a database cannot have the name {database!r}: choose another one") from None
        except (ConfigurationError, ValueError, OSError):
            raise indexes.UnfitDatabase(seeds.why_unusable(uri)) from None
        self._renewer = partial(MongoRenewer, uri, database=database, operation=operation)
        self._replica = replica
        self._tasks = Tasks()
        self._consistent_reads = ConsistentReads(self._connection, self._tasks)
        self._shared_sessions = SharedReads(self._tasks)
        process = secrets.token_hex(8)
        self._process = process
        self._orphans = Orphans(self._connection, replica=replica, process=process)
        self._shares = Shares(self._connection, self._orphans)
        self._lost_owners = LostOwners(self._connection, process)
        self._transactions = Transactions(self._connection, self._tasks, self._orphans)
        self._group_commit = GroupCommit(self._transactions)
        self._outcomes = Outcomes(self._connection)
        self._agent_documents = AgentDocuments(self._connection)
        self._unsettled = {}
        self._codec = codec

    @property
    def hosts(self) -> str:
        """The hosts of the URI, with commas."""
        return seeds.hosts_of(self._uri)

    async def open(self, *, wait: timedelta = timedelta()) -> None:
        """Creates collections and indexes. Raises UnfitDatabase if the database cannot keep the service's promises.

        A database that cannot be reached is waited for, as long as `wait` or an operation; UnfitDatabase after that.
        The message tells the operator what to do. Raises NameTaken if another process of this replica's name is alive.
        """
        await seeds.check(self._uri, patience=max(wait, self._connection.operation).total_seconds())
        try:
            await rights.check(self._connection)
            await indexes.prepare(self._connection)
            self._group_commit.grouping = not await indexes.is_sharded(self._connection)
            await self._orphans.take_name()
        except PyMongoError as error:
            raise indexes.UnfitDatabase(indexes.why_unprepared(error, self._connection)) from None

    async def close(self) -> None:
        """Waits for commits under way and for open outcomes, at most PATIENCE; then disconnects."""
        await self._tasks.close(patience=PATIENCE)
        with suppress(PyMongoError, TimeoutError), pymongo.timeout(DISCONNECT_S):
            async with asyncio.timeout(DISCONNECT_S):  # the driver's limit starts only in a free thread
                await self._orphans.end_own()
        await self._change_stream.close()
        await self._connection.close()

    def linearizable(self) -> AbstractAsyncContextManager[None]:
        return self._consistent_reads.linearizable()

    def notifications(self) -> AbstractAsyncContextManager[AsyncIterator[Notification]]:
        return self._change_stream.open()

    async def write_heartbeat(self, *, silent_after: timedelta) -> StoredHeartbeat:
        with self._connection.call("write_heartbeat"):
            return await self._orphans.write_heartbeat(silent_after=silent_after)

    def renewer(self) -> MongoRenewer:
        """Returns a renewer of leases, for use in another thread."""
        return self._renewer()

    async def secret(self, name: str) -> bytes:
        with self._connection.call("secret"):
            while True:
                if (stored := await self._connection.secrets.find_one({"_id": name})) is not None:
                    return bytes(stored["value"])
                document = {"_id": name, "tenant": "", "value": secrets.token_bytes(SECRET_BYTES), "schema": SCHEMA}
                try:
                    await self._connection.secrets.insert_one(document)
                except DuplicateKeyError:
                    continue  # another replica was first; its secret may not be durable yet

    async def ping(self) -> None:
        with self._connection.call("ping"):
            await self._connection.client.admin.command("ping")
