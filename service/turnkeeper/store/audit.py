"""What the service asks of a store about the audit trail; a part of its contract."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from turnkeeper.domain.audit import AuditRecord, ChainEnd, Seal, StoredRecord
from turnkeeper.domain.session import SessionKey


@dataclass(frozen=True, slots=True)
class Unsealed:
    """What a sealer closes next."""

    end: ChainEnd
    """The last seal before."""
    records: Sequence[StoredRecord]
    """In the order of their times."""


class AuditTrail(Protocol):
    """Reads a tenant's trail, as it is: nothing is left out because it cannot be understood."""

    async def audited_tenants(self) -> Collection[str]:
        """Returns the tenants that have a record, a seal or the end of a chain. One may be empty: the service's own."""
        ...

    async def chain_end(self, tenant: str) -> ChainEnd:
        """Returns the tenant's last seal, as its sealers know it."""
        ...

    def seals(self, tenant: str, *, numbers: Collection[int] = ()) -> AsyncIterator[Seal]:
        """Yields the tenant's seals in the order of their numbers: all, or those with these numbers."""
        ...

    def records(self, tenant: str, *, seal: int) -> AsyncIterator[StoredRecord]:
        """Yields the tenant's records that name this seal; with 0 those that have none yet."""
        ...

    def unlisted_records(self, tenant: str, *, beyond: int) -> AsyncIterator[StoredRecord]:
        """Yields the tenant's records that name no seal from 0 to `beyond`."""
        ...


class AuditStore(AuditTrail, Protocol):
    """Records what has no changeset, and seals records. `Changeset.audit` holds those that have one.

    Records and seals are only added, and no purge or trim removes one.
    """

    async def records_of_session(self, key: SessionKey) -> Sequence[StoredRecord]:
        """Returns the session's records in the order of its events, also those of a purged session of the same id."""
        ...

    async def record(self, *records: AuditRecord) -> None:
        """Stores records at once, on a majority. One whose id exists stays as it is."""
        ...

    async def unsealed_tenants(self) -> Collection[str]:
        """Returns the tenants with a record that has no seal yet."""
        ...

    async def begin_seal(self, tenant: str, *, limit: int, lease: timedelta) -> Unsealed | None:
        """Takes the tenant's lease of sealers, and returns at most `limit` of its records without a seal.

        Returns None if another replica has the lease, or if there are no such records.
        """
        ...

    async def put_seal(self, seal: Seal) -> bool:
        """Stores a seal, and its number on its records, in one transaction. Releases the lease.

        Returns False, with nothing stored, if another replica has the lease by now, or if the number is taken.
        """
        ...
