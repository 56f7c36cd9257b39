"""Stores and seals records of the audit trail."""

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import timedelta

from pymongo import ASCENDING, ReturnDocument
from pymongo.errors import BulkWriteError, ConfigurationError, DuplicateKeyError

from turnkeeper.domain.audit import AuditRecord, ChainEnd, Seal, StoredRecord
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.audit import Unsealed
from turnkeeper.store.mongo import seeds
from turnkeeper.store.mongo.audit_documents import audit_document, record_of, seal_document, seal_of_document
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.documents import SCHEMA
from turnkeeper.store.mongo.heads import NOW
from turnkeeper.store.mongo.indexes import UnfitDatabase
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import DUPLICATE_KEY, Obstacle, Writes

PAGE = 256
"""Documents of one batch."""
ORDER = [("at", ASCENDING), ("_id", ASCENDING)]
"""By the replicas' times: for people. Only the seal's order counts."""


class AuditReads:
    """Implements `AuditTrail`."""

    _connection: Connection

    async def audited_tenants(self) -> Collection[str]:
        database = self._connection
        with database.call("audited_tenants"):
            of_each = [
                await collection.distinct("tenant")
                for collection in (database.audit_records, database.audit_seals, database.audit_chains)
            ]
        return sorted({str(tenant) for tenants in of_each for tenant in tenants})

    async def chain_end(self, tenant: str) -> ChainEnd:
        with self._connection.call("chain_end"):
            chain = await self._connection.audit_chains.find_one({"_id": {"tenant": tenant}, "tenant": tenant})
        return ChainEnd() if chain is None else _end_of(chain)

    async def seals(self, tenant: str, *, numbers: Collection[int] = ()) -> AsyncIterator[Seal]:
        match: Document = {"tenant": tenant, **({"number": {"$in": sorted(numbers)}} if numbers else {})}
        cursor = self._connection.audit_seals.find(match).sort("number").batch_size(PAGE)
        try:
            while True:
                with self._connection.call("audit_seals"):
                    documents = await cursor.to_list(PAGE)
                for document in documents:
                    yield seal_of_document(document)
                if not documents:
                    return
        finally:
            await cursor.close()

    async def records(self, tenant: str, *, seal: int) -> AsyncIterator[StoredRecord]:
        async for record in self._records({"tenant": tenant, "seal": seal}):
            yield record

    async def unlisted_records(self, tenant: str, *, beyond: int) -> AsyncIterator[StoredRecord]:
        ordinary = {"$type": ["int", "long"], "$gte": 0, "$lte": beyond, "$not": {"$type": "array"}}
        async for record in self._records({"tenant": tenant, "$nor": [{"seal": ordinary}]}):
            yield record

    async def _records(self, match: Document) -> AsyncIterator[StoredRecord]:
        cursor = self._connection.audit_records.find(match).sort(ORDER).batch_size(PAGE)
        try:
            while True:
                with self._connection.call("audit_records"):
                    documents = await cursor.to_list(PAGE)
                for document in documents:
                    yield record_of(document)
                if not documents:
                    return
        finally:
            await cursor.close()


class Audits(AuditReads):
    """Implements `AuditStore`."""

    _transactions: Transactions
    _process: str

    async def records_of_session(self, key: SessionKey) -> Sequence[StoredRecord]:
        match = {"tenant": key.tenant, "session_id": key.session_id}
        with self._connection.call("audit_records"):
            documents = await self._connection.audit_records.find(match).sort("seq").to_list(None)
        return [record_of(document) for document in documents]

    async def record(self, *records: AuditRecord) -> None:
        with self._connection.call("record"):
            try:
                await self._connection.audit_records.insert_many(map(audit_document, records), ordered=False)
            except BulkWriteError as error:
                if any(failure["code"] != DUPLICATE_KEY for failure in (error.details or {}).get("writeErrors", ())):
                    raise

    async def unsealed_tenants(self) -> Collection[str]:
        with self._connection.call("unsealed_tenants"):
            tenants: list[str] = await self._connection.audit_records.distinct("tenant", {"seal": 0})
        return tenants

    async def begin_seal(self, tenant: str, *, limit: int, lease: timedelta) -> Unsealed | None:
        with self._connection.call("begin_seal"):
            chain = await self._take_lease(tenant, lease)
            if chain is None:
                return None
            # One with another kind of key could not be given the seal's number: it would be sealed again and again.
            own_key = {"$eq": ["$_id", {"tenant": "$tenant", "id": "$_id.id"}]}
            match = {"tenant": tenant, "seal": 0, "_id.id": {"$type": "string"}, "$expr": own_key}
            documents = await self._connection.audit_records.find(match).sort(ORDER).limit(limit).to_list(limit)
            end = await self._last_seal(tenant, _end_of(chain))
        return Unsealed(end, [record_of(document) for document in documents]) if documents else None

    async def put_seal(self, seal: Seal) -> bool:
        def write(writes: Writes) -> None:
            writes.compute(
                "audit_chains",
                {"_id": {"tenant": seal.tenant}, "tenant": seal.tenant, "owner": self._process},
                [{"$set": {"number": seal.number, "hash": seal.hash, "owner": "", "until": NOW}}],
            )
            writes.insert("audit_seals", seal_document(seal))
            ids = [{"tenant": seal.tenant, "id": leaf.id} for leaf in seal.leaves]
            writes.update_where(
                "audit_records",
                {"_id": {"$in": ids}, "tenant": seal.tenant, "seal": 0},
                {"seal": seal.number},
            )

        async def look(session: ClientSession, obstacle: Obstacle) -> bool | None:
            key = {"tenant": seal.tenant, "number": seal.number}
            stored = await self._connection.audit_seals.find_one({"_id": key, "tenant": seal.tenant}, session=session)
            if stored is not None:
                return bool(stored["hash"] == seal.hash)
            return False if obstacle is Obstacle.MISS else None

        with self._connection.transaction_call("put_seal"):
            return await self._transactions.run(Transaction(write, result=True, look=look))

    async def _take_lease(self, tenant: str, lease: timedelta) -> Document | None:
        """Returns the chain's document, or None if another replica has the lease."""
        free = {"$or": [{"$lte": [{"$ifNull": ["$until", NOW]}, NOW]}, {"$eq": ["$owner", self._process]}]}
        until = {"$add": [NOW, round(lease / timedelta(milliseconds=1))]}
        pipeline = [
            {
                "$set": {
                    "tenant": tenant,
                    "owner": {"$cond": [free, self._process, "$owner"]},
                    "until": {"$cond": [free, until, "$until"]},
                    "schema": SCHEMA,
                }
            }
        ]
        try:
            chain: Document = await self._connection.audit_chains.find_one_and_update(
                {"_id": {"tenant": tenant}, "tenant": tenant},
                pipeline,
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:
            return None  # another replica made it at the same time
        return chain if chain["owner"] == self._process else None

    async def _last_seal(self, tenant: str, end: ChainEnd) -> ChainEnd:
        """Returns the end of the chain; its last seal if the chain's own document was lost, or is behind it."""
        numbered = {"tenant": tenant, "number": {"$type": ["int", "long"]}}
        last = await self._connection.audit_seals.find(numbered).sort("number", -1).limit(1).to_list(1)
        if not last or last[0]["number"] <= end.number:
            return end
        return ChainEnd(last[0]["number"], seal_of_document(last[0]).hash)


class TrailReader(AuditReads):
    """Reads the trails of a database, and nothing else: the rights to read are enough."""

    def __init__(self, uri: str, *, database: str, operation: timedelta) -> None:
        """Raises UnfitDatabase if `uri` is not an address."""
        try:
            self._connection = Connection(uri, database=database, operation=operation, schema=SCHEMA)
        except (ConfigurationError, ValueError, OSError):
            raise UnfitDatabase(seeds.why_unusable(uri)) from None

    async def close(self) -> None:
        """Disconnects."""
        await self._connection.close()


def _end_of(chain: Document) -> ChainEnd:
    """Returns the end that a document holds. A number that was changed by hand into something else counts as none."""
    number = chain.get("number", 0)
    return ChainEnd(number, str(chain.get("hash", ""))) if isinstance(number, int) else ChainEnd()
