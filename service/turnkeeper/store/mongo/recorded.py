"""Stores documents that belong to no session, each with the record of who did so: freezes, denials, delegations."""

from turnkeeper.domain.audit import AuditRecord
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.audit_documents import audit_document
from turnkeeper.store.mongo.client import ClientSession, Document
from turnkeeper.store.mongo.documents import SCHEMA, encode
from turnkeeper.store.mongo.measured_reads import MeasuredReads
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes


class RecordedDocuments(MeasuredReads):
    """Puts and removes a document and stores the record, in one transaction. `operation` is what the call is named."""

    _transactions: Transactions

    async def _put_recorded(
        self, operation: str, collection: str, key: Document, value: object, record: AuditRecord
    ) -> None:
        """Stores the value in place of the one with this key."""

        def write(writes: Writes) -> None:
            writes.delete(collection, keys.where(key))
            writes.insert(collection, recorded(key, value, record))
            writes.insert("audit_records", audit_document(record))

        async def look(session: ClientSession, _: Obstacle) -> bool | None:
            return await self._has_record(record, session) or None

        with self._connection.transaction_call(operation):
            await self._transactions.run(Transaction(write, result=True, look=look))

    async def _remove_recorded(self, operation: str, collection: str, key: Document, record: AuditRecord) -> bool:
        """Removes the document with this key. Returns False, with nothing stored, if there is none."""

        def write(writes: Writes) -> None:
            writes.update(collection, keys.where(key), {"record": record.id})  # a deletion need not find a document
            writes.delete(collection, keys.where(key))
            writes.insert("audit_records", audit_document(record))

        async def look(session: ClientSession, obstacle: Obstacle) -> bool | None:
            if await self._has_record(record, session):
                return True
            return False if obstacle is Obstacle.MISS else None

        with self._connection.transaction_call(operation):
            return await self._transactions.run(Transaction(write, result=True, look=look))

    async def _has_record(self, record: AuditRecord, session: ClientSession) -> bool:
        """Returns True if the record is stored, and with it what it is about."""
        of_record = {"_id": {"tenant": record.tenant, "id": record.id}, "tenant": record.tenant}
        return await self._connection.audit_records.find_one(of_record, {"_id": 1}, session=session) is not None


def recorded(key: Document, value: object, record: AuditRecord) -> Document:
    """Returns the document of a value, which names the record."""
    return {"_id": key, **encode(value), "record": record.id, "schema": SCHEMA}
