"""Delegations of authority."""

from collections.abc import Sequence

from tests.memory_store.part import Part
from turnkeeper.domain.audit import AuditRecord
from turnkeeper.domain.delegation import Delegation


class Delegations(Part):
    """Implements `DelegationStore`."""

    async def put_delegation(self, delegation: Delegation, record: AuditRecord) -> None:
        await self._enter("put_delegation")
        self._database.delegations[delegation.tenant, delegation.person, delegation.delegate] = delegation
        self._database.put_records(record)

    async def remove_delegation(self, tenant: str, person: str, delegate: str, record: AuditRecord) -> bool:
        await self._enter("remove_delegation")
        if self._database.delegations.pop((tenant, person, delegate), None) is None:
            return False
        self._database.put_records(record)
        return True

    async def delegations(
        self,
        tenant: str,
        *,
        delegate: str = "",
        concerning: str = "",
        limit: int,
        after: tuple[str, str] | None = None,
    ) -> Sequence[Delegation]:
        await self._enter("delegations")
        now = self._database.now()
        page = [
            delegation
            for (of, person, to), delegation in sorted(self._database.delegations.items())
            if of == tenant
            and delegation.until > now
            and delegate in ("", to)
            and concerning in ("", person, to)
            and (after is None or (person, to) > after)
        ]
        return page[:limit]
