"""Seals new records of the audit trail: gives them an order, and chains their hashes. One on every replica.

A sealer has a tenant's lease for one seal only, so the next may be another replica's.
"""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from turnkeeper.domain.audit import Seal, seal_of
from turnkeeper.engine.replica.schedule import JitteredInterval, every
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.audit import AuditStore

INTERVAL: Final = 2.0
"""Seconds between two looks for new records, on average: each has a seal 5 s after it was stored."""
MOST_RECORDS: Final = 1000
"""Records of one seal, at most; the next seal follows at once."""
LEASE: Final = timedelta(seconds=5)
"""A replica that dies while it seals keeps the others from sealing for as long."""

logger = logging.getLogger(__name__)


class Sealer:
    """Seals at intervals."""

    def __init__(
        self,
        store: AuditStore,
        *,
        sign: Callable[[Seal], Seal] | None,
        now: Callable[[], datetime],
        jitter: Callable[[], float],
    ) -> None:
        """`sign` returns a seal with its signature; None leaves seals unsigned."""
        self._store = store
        self._sign = sign or (lambda seal: seal)
        self._now = now
        self._interval = JitteredInterval(INTERVAL, jitter)

    async def run(self) -> None:
        """Seals at each interval until it is cancelled."""
        await every(self._interval, self.seal, failure="audit records not sealed")

    async def seal(self) -> None:
        """Seals the new records of all tenants. Raises ServiceUnavailable if the database is unavailable.

        A defect in one tenant's trail is logged, and keeps no other tenant's records from their seals.
        """
        for tenant in await self._store.unsealed_tenants():
            try:
                while await self._seal(tenant) == MOST_RECORDS:
                    pass
            except ServiceUnavailable:
                raise
            except Exception:
                logger.exception("audit records of tenant %s not sealed; check its trail with audit verify", tenant)

    async def _seal(self, tenant: str) -> int:
        """Seals a tenant's next records. Returns how many; 0 if there are none, or if another replica seals them."""
        unsealed = await self._store.begin_seal(tenant, limit=MOST_RECORDS, lease=LEASE)
        if unsealed is None:
            return 0
        seal = self._sign(seal_of(tenant, list(unsealed.records), after=unsealed.end, at=self._now()))
        if not await self._store.put_seal(seal):
            return 0
        logger.info("audit seal %s closes %d records", seal.name, len(seal.leaves))
        return len(seal.leaves)
