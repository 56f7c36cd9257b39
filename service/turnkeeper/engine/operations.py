"""The operator's verbs: what runs, its cancellation, and freezes. What they change goes on record."""

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from typing import Final, NoReturn, Protocol

from turnkeeper.domain.audit import AuditRecord, Origin
from turnkeeper.domain.denial import ToolDenial
from turnkeeper.domain.freeze import Freeze
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.denials import Denials
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.freezes import INTERVAL, Freezes
from turnkeeper.engine.replica.schedule import every
from turnkeeper.engine.rules.audit import CANCEL_TURN, Operation
from turnkeeper.engine.turns import Turns
from turnkeeper.errors import QuotaExceeded, ServiceUnavailable, SessionError
from turnkeeper.operator_errors import TurnCountMismatch
from turnkeeper.store.audit import AuditStore
from turnkeeper.store.operations import OperationStore, TurnFilter

MOST_CANCELLED: Final = 10_000
"""Turns that one call cancels, at most."""
PAGE: Final = 1000
"""Turns of one read."""
SESSIONS_AT_ONCE: Final = 16
"""Sessions whose turns are cancelled at the same time."""
MOST_FREEZES: Final = 1000
"""Freezes of one tenant, about: every replica reads those of all tenants once a second."""
MOST_DENIALS: Final = 100
"""Denials of tools of one tenant, about: every replica reads those of all tenants once a second."""
FREEZE_TRIES: Final = 3
"""How often a freeze is stored that others store or end at the same time."""
NAMED: Final = 100
"""Turns that the record of a cancellation names, at most; its target is the hash of all."""


class _Store(OperationStore, AuditStore, Protocol):
    """What the verbs need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """What became of the turns of a cancellation."""

    cancelled: int = 0
    requested: int = 0
    """Their owners cancel them within moments."""
    ended: int = 0
    """They had ended by themselves."""
    failed: int = 0


class Operations:
    """The operator's verbs."""

    def __init__(self, store: _Store, turns: Turns, freezes: Freezes, denials: Denials, *, sources: Sources) -> None:
        self._store = store
        self._turns = turns
        self._freezes = freezes
        self._denials = denials
        self._sources = sources
        self._running: set[asyncio.Task[Cancelled]] = set()

    async def load(self) -> None:
        """Reads what is frozen, and what is denied. Raises ServiceUnavailable, and keeps what was read before."""
        self._freezes.set(await self._store.freezes())
        self._denials.set(await self._store.denials())

    async def run(self) -> NoReturn:
        """Reads what is frozen at each interval until it is cancelled."""
        await every(lambda: INTERVAL, self.load, failure="what is frozen was not read: the last reading counts")

    async def cancel(self, tenant: str, where: TurnFilter, *, expected: int, origin: Origin) -> Cancelled:
        """Cancels the turns that match now, if they are as many as expected, and records that before.

        It runs to its end even if the caller leaves. Raises TurnCountMismatch, with nothing changed.
        """
        turns = await self._matching(tenant, where, most=expected)
        if len(turns) != expected:
            count = str(len(turns)) if len(turns) < expected else str(len(await self._matching(tenant, where)))
            raise TurnCountMismatch(metadata={"count": count, "expected_count": str(expected)})
        names = [f"{key.session_id}/{turn_id}" for key, turn_id in turns]
        details = {"count": str(expected), "turns": " ".join(names[:NAMED]), **_written(where)}
        target = hashlib.sha256("\n".join(names).encode()).hexdigest()
        await self._store.record(
            self._record(tenant, "cancel_turns", target=target, outcome="ORDERED", origin=origin, details=details)
        )
        task = asyncio.create_task(self._cancel(turns, Operation(action=CANCEL_TURN, origin=origin)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def freeze(self, tenant: str, agent: str, *, reason: str, origin: Origin) -> Freeze:
        """Freezes new work of the tenant, for one agent or for all. Returns the freeze as it was first stored.

        Raises QuotaExceeded beyond MOST_FREEZES, and ServiceUnavailable if there is one that cannot be read.
        """
        freeze = Freeze(
            tenant=tenant,
            agent=agent,
            principal=origin.on_behalf_of or origin.principal,
            reason=reason,
            create_time=self._sources.now(),
        )
        record = partial(
            self._record, tenant, "freeze_admission", origin=origin, details={"agent": agent, "reason": reason}
        )
        for _ in range(FREEZE_TRIES):
            stored = {freeze.agent: freeze for freeze in await self.frozen(tenant)}
            if agent in stored:
                await self._store.record(record(outcome="UNCHANGED"))
                freeze = stored[agent]
                break
            if len(stored) >= MOST_FREEZES:
                raise QuotaExceeded(f"The tenant has {MOST_FREEZES} freezes; end some, or freeze all of its agents.")
            if await self._store.put_freeze(freeze, record(outcome="FROZEN")):
                break
        else:
            raise ServiceUnavailable
        await self.load()
        return freeze

    async def unfreeze(self, tenant: str, agent: str, *, origin: Origin) -> bool:
        """Ends a freeze. Returns False if there was none."""
        record = partial(self._record, tenant, "unfreeze_admission", origin=origin, details={"agent": agent})
        removed = await self._store.remove_freeze(tenant, agent, record(outcome="UNFROZEN"))
        if not removed:
            await self._store.record(record(outcome="UNCHANGED"))
        await self.load()
        return removed

    async def frozen(self, tenant: str) -> Sequence[Freeze]:
        """Returns the tenant's freezes, as they are stored."""
        return [freeze for freeze in await self._store.freezes() if freeze.tenant == tenant]

    async def deny_tool(
        self, tenant: str, pattern: str, *, until: datetime | None, reason: str, origin: Origin
    ) -> ToolDenial:
        """Denies tools in the tenant. One of the same pattern takes the place of the one before.

        Raises QuotaExceeded beyond MOST_DENIALS.
        """
        others = [denial for denial in await self.denied_tools(tenant) if denial.pattern != pattern]
        if len(others) >= MOST_DENIALS:
            raise QuotaExceeded(f"The tenant has {MOST_DENIALS} denials of tools; allow some again.")
        denial = ToolDenial(
            tenant=tenant,
            pattern=pattern,
            principal=origin.on_behalf_of or origin.principal,
            reason=reason,
            create_time=self._sources.now(),
            until=until,
        )
        details = {"tool": pattern, "reason": reason, "until": until.isoformat() if until else ""}
        await self._store.put_denial(
            denial, self._record(tenant, "deny_tool", outcome="DENIED", origin=origin, details=details)
        )
        await self.load()
        return denial

    async def allow_tool(self, tenant: str, pattern: str, *, origin: Origin) -> bool:
        """Ends the denial of this pattern. Returns False if there was none."""
        record = partial(self._record, tenant, "allow_tool", origin=origin, details={"tool": pattern})
        removed = await self._store.remove_denial(tenant, pattern, record(outcome="ALLOWED"))
        if not removed:
            await self._store.record(record(outcome="UNCHANGED"))
        await self.load()
        return removed

    async def denied_tools(self, tenant: str) -> Sequence[ToolDenial]:
        """Returns the tenant's denials in force, as they are stored."""
        return [denial for denial in await self._store.denials() if denial.tenant == tenant]

    async def _matching(
        self, tenant: str, where: TurnFilter, *, most: int = MOST_CANCELLED
    ) -> Sequence[tuple[SessionKey, str]]:
        """Returns the turns that match: `most` of them, and one more if there are."""
        turns: list[tuple[SessionKey, str]] = []
        after: tuple[str, str] | None = None
        while len(turns) <= most:
            page = await self._store.active_turns(tenant, where, limit=PAGE, after=after)
            turns += [(active.turn.session_key, active.turn.id) for active in page]
            if len(page) < PAGE:
                break
            after = (page[-1].turn.session_id, page[-1].turn.id)
        return turns[: most + 1]

    async def _cancel(self, turns: Sequence[tuple[SessionKey, str]], operation: Operation) -> Cancelled:
        """Cancels the turns: of each session the newest first, so that none begins because another one ends."""
        of_session: defaultdict[SessionKey, list[str]] = defaultdict(list)
        for key, turn_id in turns:
            of_session[key].append(turn_id)
        limit = asyncio.Semaphore(SESSIONS_AT_ONCE)

        async def cancel(key: SessionKey, ids: list[str]) -> list[str]:
            async with limit:
                return [await self._cancel_one(key, turn_id, operation) for turn_id in sorted(ids, reverse=True)]

        results = await asyncio.gather(*(cancel(key, ids) for key, ids in of_session.items()))
        counts = Counter(result for of_one in results for result in of_one)
        return Cancelled(**{field.name: counts[field.name] for field in fields(Cancelled)})

    async def _cancel_one(self, key: SessionKey, turn_id: str, operation: Operation) -> str:
        """Returns the field of Cancelled in which the turn counts."""
        by = operation.origin.on_behalf_of or operation.origin.principal
        try:
            turn = await self._turns.order_cancel(key, turn_id, by=by, operation=operation)
        except SessionError:
            return "failed"
        if turn is None:
            return "requested"
        return "cancelled" if turn.state is TurnState.CANCELLED else "ended"

    def _record(
        self, tenant: str, action: str, *, outcome: str, origin: Origin, details: Mapping[str, str], target: str = ""
    ) -> AuditRecord:
        return AuditRecord(
            tenant=tenant,
            id=self._sources.new_id(),
            at=self._sources.now(),
            action=action,
            target=target,
            outcome=outcome,
            origin=origin,
            details=details,
        )


def _written(where: TurnFilter) -> Mapping[str, str]:
    """Returns the fields of the filter that are set, as texts."""
    before = where.created_before.isoformat() if where.created_before else ""
    texts = {
        "agent": where.agent,
        "tool": where.tool,
        "states": " ".join(state.value for state in where.states),
        "created_before": before,
        "session_id": where.session_id,
        "principal": where.principal,
    }
    return {f"filter.{name}": text for name, text in texts.items() if text}
