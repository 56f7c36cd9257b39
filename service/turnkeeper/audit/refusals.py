"""Samples of refused calls, for the audit trail."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from turnkeeper.domain.audit import AuditRecord, Origin
from turnkeeper.store.audit import AuditStore

SAMPLE_S: Final = 1.0
"""Seconds between two samples of one principal and reason, at least."""
MOST_WATCHED: Final = 4096
"""Principals with reasons that are kept apart, at most; beyond it the one that was refused longest ago is forgotten."""
MOST_SAMPLES: Final = 256
"""Samples of one second, at most: beyond it they are only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCall:
    """A call that was refused because of who made it."""

    tenant: str
    """Empty if the caller's is not known."""
    reason: str
    """The error's name, with the reason in its metadata if it has one."""
    method: str
    origin: Origin


class RefusalSamples:
    """Samples refused calls: at most one a second for each principal and reason, with the number since the last one."""

    def __init__(self, store: AuditStore, *, now: Callable[[], datetime], new_id: Callable[[], str]) -> None:
        self._audit = store
        self._now = now
        self._new_id = new_id
        self._refusals: OrderedDict[tuple[str, str, str, str], _Refusals] = OrderedDict()
        self._samples: list[AuditRecord] = []

    def note(self, call: RefusedCall) -> None:
        """Takes a sample of this call, or counts it for the next one. Waits for nothing."""
        key = (call.tenant, call.origin.principal, call.origin.credential_id, call.reason)
        refusals = self._refusals.setdefault(key, _Refusals())
        self._refusals.move_to_end(key)
        if len(self._refusals) > MOST_WATCHED:
            self._refusals.popitem(last=False)
        refusals.count += 1
        now = self._now()
        if refusals.last is not None and (now - refusals.last).total_seconds() < SAMPLE_S:
            return
        if len(self._samples) >= MOST_SAMPLES:
            return
        record = AuditRecord(
            tenant=call.tenant,
            id=self._new_id(),
            at=now,
            action="refused",
            target=call.method,
            outcome=call.reason,
            origin=call.origin,
            details={"calls": str(refusals.count)},
        )
        refusals.last, refusals.count = now, 0
        self._samples.append(record)

    async def store(self) -> None:
        """Stores the samples so far. Keeps them for the next time if the database is unavailable: it raises then."""
        if samples := self._samples:
            await self._audit.record(*samples)
            self._samples = self._samples[len(samples) :]


@dataclass(slots=True)
class _Refusals:
    """Refused calls of one principal for one reason."""

    count: int = 0
    """Since the last sample."""
    last: datetime | None = None
    """When that was taken."""
