"""What delegations ask of a store; a part of its contract."""

from collections.abc import Sequence
from typing import Protocol

from turnkeeper.domain.audit import AuditRecord
from turnkeeper.domain.delegation import Delegation


class DelegationStore(Protocol):
    """Delegations of authority. A person has one at most to each delegate."""

    async def put_delegation(self, delegation: Delegation, record: AuditRecord) -> None:
        """Stores the delegation with its record, in place of the one to the same delegate."""
        ...

    async def remove_delegation(self, tenant: str, person: str, delegate: str, record: AuditRecord) -> bool:
        """Removes a delegation, and stores the record. Returns False, with nothing stored, if there is none."""
        ...

    async def delegations(
        self,
        tenant: str,
        *,
        delegate: str = "",
        concerning: str = "",
        limit: int,
        after: tuple[str, str] | None = None,
    ) -> Sequence[Delegation]:
        """Returns a page of those in force by the store's clock, ordered by (person, delegate), beyond `after`.

        With `delegate` those to this delegate, with `concerning` those that this principal has given or received.
        """
        ...
