"""Stores delegations of authority, with their records."""

from collections.abc import Sequence

from turnkeeper.domain.audit import AuditRecord
from turnkeeper.domain.delegation import Delegation
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.heads import NOW
from turnkeeper.store.mongo.recorded import RecordedDocuments


class DelegationDocuments(RecordedDocuments):
    """Implements `DelegationStore`."""

    async def put_delegation(self, delegation: Delegation, record: AuditRecord) -> None:
        key = keys.of_delegation(delegation.tenant, delegation.person, delegation.delegate)
        await self._put_recorded("put_delegation", "delegations", key, delegation, record)

    async def remove_delegation(self, tenant: str, person: str, delegate: str, record: AuditRecord) -> bool:
        key = keys.of_delegation(tenant, person, delegate)
        return await self._remove_recorded("remove_delegation", "delegations", key, record)

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
