"""Records and seals of the audit trail."""

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import timedelta

from tests.memory_store.part import Part
from tests.memory_store.state import Trail
from turnkeeper.domain.audit import AuditRecord, ChainEnd, Seal, StoredRecord
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.audit import Unsealed


class Audits(Part):
    """Implements `AuditStore`."""

    async def audited_tenants(self) -> Collection[str]:
        await self._enter("audited_tenants")
        return sorted(self._database.trails)

    async def chain_end(self, tenant: str) -> ChainEnd:
        await self._enter("chain_end")
        return _end_of(self._trail(tenant))

    async def seals(self, tenant: str, *, numbers: Collection[int] = ()) -> AsyncIterator[Seal]:
        await self._enter("seals")
        for seal in list(self._trail(tenant).seals):
            if not numbers or seal.number in numbers:
                yield seal

    async def records(self, tenant: str, *, seal: int) -> AsyncIterator[StoredRecord]:
        await self._enter("records")
        for record in self._stored(tenant):
            if record.seal == seal:
                yield record

    async def unlisted_records(self, tenant: str, *, beyond: int) -> AsyncIterator[StoredRecord]:
        await self._enter("unlisted_records")
        for record in self._stored(tenant):
            if not 0 <= record.seal <= beyond:
                yield record

    async def records_of_session(self, key: SessionKey) -> Sequence[StoredRecord]:
        await self._enter("records_of_session")
        records = self._trail(key.tenant).records
        of_session = [record for record in self._stored(key.tenant) if records[record.id].session_id == key.session_id]
        return sorted(of_session, key=lambda record: records[record.id].sequence)

    async def record(self, *records: AuditRecord) -> None:
        await self._enter("record")
        self._database.put_records(*records)

    async def unsealed_tenants(self) -> Collection[str]:
        await self._enter("unsealed_tenants")
        return [tenant for tenant in self._database.trails if any(not record.seal for record in self._stored(tenant))]

    async def begin_seal(self, tenant: str, *, limit: int, lease: timedelta) -> Unsealed | None:
        await self._enter("begin_seal")
        trail, now = self._trail(tenant), self._database.now()
        if trail.until is not None and trail.until > now and trail.sealer != self._process:
            return None
        trail.sealer, trail.until = self._process, now + lease
        records = [record for record in self._stored(tenant) if not record.seal][:limit]
        return Unsealed(_end_of(trail), records) if records else None

    async def put_seal(self, seal: Seal) -> bool:
        await self._enter("put_seal")
        trail = self._trail(seal.tenant)
        if trail.sealer != self._process or seal.number != len(trail.seals) + 1:
            return False
        trail.sealer, trail.until = 0, None
        trail.seals.append(seal)
        trail.sealed |= {leaf.id: seal.number for leaf in seal.leaves}
        return True

    def _trail(self, tenant: str) -> Trail:
        return self._database.trails.setdefault(tenant, Trail())

    def _stored(self, tenant: str) -> list[StoredRecord]:
        """Returns the tenant's records in the order of their times."""
        trail = self._trail(tenant)
        ordered = sorted(trail.records.values(), key=lambda record: (record.at, record.id))
        return [StoredRecord(record.id, record.text, trail.sealed.get(record.id, 0)) for record in ordered]


def _end_of(trail: Trail) -> ChainEnd:
    return ChainEnd(len(trail.seals), trail.seals[-1].hash) if trail.seals else ChainEnd()
