"""What the operator has frozen, as this replica knows it: read again each second, so all replicas agree within two."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from turnkeeper.domain.freeze import Freeze
from turnkeeper.operator_errors import AdmissionFrozen

INTERVAL: Final = 1.0
"""Seconds between two readings."""
RETRY_AFTER: Final = timedelta(seconds=30)
"""When a refused caller may try again: freezes end by hand."""


class Freezes:
    """The freezes of all tenants."""

    def __init__(self) -> None:
        self._frozen: frozenset[tuple[str, str]] = frozenset()
        """By tenant and agent; the agent is empty for all of a tenant."""

    def set(self, freezes: Iterable[Freeze]) -> None:
        """Takes what is frozen from now on."""
        self._frozen = frozenset((freeze.tenant, freeze.agent) for freeze in freezes)

    def is_frozen(self, tenant: str, agent: str) -> bool:
        """Returns True if new work of this tenant for this agent is refused."""
        return not self._frozen.isdisjoint(((tenant, ""), (tenant, agent)))

    def check(self, tenant: str, agent: str) -> None:
        """Raises AdmissionFrozen if new work of this tenant for this agent is refused."""
        if self.is_frozen(tenant, agent):
            raise AdmissionFrozen(metadata={"agent": agent}, retry_after=RETRY_AFTER)
