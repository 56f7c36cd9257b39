"""What operators see and change."""

from collections.abc import Iterator, Sequence
from itertools import islice

from tests.memory_store.part import Part
from tests.memory_store.state import StoredSession
from turnkeeper.domain.audit import AuditRecord
from turnkeeper.domain.denial import ToolDenial
from turnkeeper.domain.freeze import Freeze
from turnkeeper.domain.tool import CallState
from turnkeeper.store.operations import ActiveTurn, ReplicaState, TurnFilter


class Operations(Part):
    """Implements `OperationStore`."""

    async def active_turns(
        self, tenant: str, where: TurnFilter, *, limit: int, after: tuple[str, str] | None
    ) -> Sequence[ActiveTurn]:
        await self._enter("active_turns")
        sessions = (stored for key, stored in sorted(self._database.sessions.items()) if key.tenant == tenant)
        active = (item for stored in sessions if not stored.deleted for item in self._active_of(stored))
        beyond = after or ("", "")
        fitting = (
            item
            for item in active
            if (item.turn.session_id, item.turn.id) > beyond and where.fits(item.turn, item.tools)
        )
        return list(islice(fitting, limit))

    def _active_of(self, stored: StoredSession) -> Iterator[ActiveTurn]:
        leased = stored.lease_until is not None and stored.lease_until > self._database.now()
        for turn_id in sorted({stored.active_turn, *stored.queue} - {""}):
            calls = (call for call in stored.calls.values() if call.turn_id == turn_id)
            opened = (call.tool for call in calls if call.state is not CallState.RETURNED)
            yield ActiveTurn(
                turn=stored.turns[turn_id],
                tools=tuple(dict.fromkeys(opened)),
                owner=stored.owner if leased and turn_id == stored.active_turn else "",
                cancelling=stored.cancel.turn_id == turn_id,
            )

    async def freezes(self) -> Sequence[Freeze]:
        await self._enter("freezes")
        return [freeze for _, freeze in sorted(self._database.freezes.items())]

    async def put_freeze(self, freeze: Freeze, record: AuditRecord) -> bool:
        await self._enter("put_freeze")
        if (freeze.tenant, freeze.agent) in self._database.freezes:
            return False
        self._database.freezes[freeze.tenant, freeze.agent] = freeze
        self._database.put_records(record)
        return True

    async def remove_freeze(self, tenant: str, agent: str, record: AuditRecord) -> bool:
        await self._enter("remove_freeze")
        if self._database.freezes.pop((tenant, agent), None) is None:
            return False
        self._database.put_records(record)
        return True

    async def denials(self) -> Sequence[ToolDenial]:
        await self._enter("denials")
        now = self._database.now()
        stored = (denial for _, denial in sorted(self._database.denials.items()))
        return [denial for denial in stored if denial.until is None or denial.until > now]

    async def put_denial(self, denial: ToolDenial, record: AuditRecord) -> None:
        await self._enter("put_denial")
        self._database.denials[denial.tenant, denial.pattern] = denial
        self._database.put_records(record)

    async def remove_denial(self, tenant: str, pattern: str, record: AuditRecord) -> bool:
        await self._enter("remove_denial")
        if self._database.denials.pop((tenant, pattern), None) is None:
            return False
        self._database.put_records(record)
        return True

    async def replicas(self) -> Sequence[ReplicaState]:
        await self._enter("replicas")
        now = self._database.now()
        owners = [
            stored.owner
            for stored in self._database.sessions.values()
            if stored.lease_until is not None and stored.lease_until > now
        ]
        return [
            ReplicaState(
                name=name,
                heartbeat=heartbeat.at,
                alive=heartbeat.at + heartbeat.silent_after >= now,
                turns=owners.count(name),
            )
            for name, heartbeat in sorted(self._database.heartbeats.items())
        ]
