"""Stores delegations of authority, with their records."""

from collections.abc import Sequence

from turnkeeper.domain.audit import AuditRecord
from turnkeeper.domain.delegation import Delegation
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.audit_documents import audit_document
from turnkeeper.store.mongo.client import ClientSession, Document
from turnkeeper.store.mongo.documents import SCHEMA, decode, encode
from turnkeeper.store.mongo.heads import NOW
from turnkeeper.store.mongo.measured_reads import MeasuredReads
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes


class DelegationDocuments(MeasuredReads):
    """Implements `DelegationStore`."""

    _transactions: Transactions

    async def put_delegation(self, delegation: Delegation, record: AuditRecord) -> None:
        key = keys.of_delegation(delegation.tenant, delegation.person, delegation.delegate)

        def write(writes: Writes) -> None:
            writes.delete("delegations", keys.where(key))
            writes.insert("delegations", {"_id": key, **encode(delegation), "record": record.id, "schema": SCHEMA})
            writes.insert("audit_records", audit_document(record))

        async def look(session: ClientSession, _: Obstacle) -> bool | None:
            return await self._is_recorded(record, session) or None

        with self._connection.transaction_call("put_delegation"):
            await self._transactions.run(Transaction(write, result=True, look=look))

    async def remove_delegation(self, tenant: str, person: str, delegate: str, record: AuditRecord) -> bool:
        key = keys.of_delegation(tenant, person, delegate)

        def write(writes: Writes) -> None:
            writes.update("delegations", keys.where(key), {"record": record.id})
            writes.delete("delegations", keys.where(key))
            writes.insert("audit_records", audit_document(record))

        async def look(session: ClientSession, obstacle: Obstacle) -> bool | None:
            if await self._is_recorded(record, session):
                return True
            return False if obstacle is Obstacle.MISS else None

        with self._connection.transaction_call("remove_delegation"):
            return await self._transactions.run(Transaction(write, result=True, look=look))

    async def delegations(
        self,
        tenant: str,
        *,
        delegate: str = "",
        concerning: str = "",
        limit: int,
        after: tuple[str, str] | None = None,
    ) -> Sequence[Delegation]:
        conditions: list[Document] = [{"$expr": {"$gt": ["$until", NOW]}}]
        if delegate:
            conditions.append({"delegate": delegate})
        if concerning:
            conditions.append({"$or": [{"person": concerning}, {"delegate": concerning}]})
        if after is not None:
            person, last = after
            conditions.append({"$or": [{"person": {"$gt": person}}, {"person": person, "delegate": {"$gt": last}}]})
        order = [("person", 1), ("delegate", 1)]
        with self._reading("delegations") as read:
            cursor = read(self._connection.delegations).find({"tenant": tenant, "$and": conditions}).sort(order)
            documents = await cursor.limit(limit).to_list(limit)
        return self._connection.unreadable.passed_over(documents, lambda document: decode(Delegation, document))

    async def _is_recorded(self, record: AuditRecord, session: ClientSession) -> bool:
        of_record = {"_id": {"tenant": record.tenant, "id": record.id}, "tenant": record.tenant}
        return await self._connection.audit_records.find_one(of_record, {"_id": 1}, session=session) is not None
