"""Claims, leases, requests to cancel, and sweeps."""

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from tests.memory_store.part import Part
from tests.memory_store.state import BrokenRuns, LostOwner, StoredSession
from turnkeeper import lease_clock
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CallState
from turnkeeper.domain.turn import TurnKey, TurnState
from turnkeeper.store.changeset import NONE_BUSY, Busy, Cancel, Claim, Snapshot
from turnkeeper.store.maintenance import SHARE_KEPT, LapsedPage, UnclaimedTurns

OTHERS_FIRST = timedelta(seconds=2)
"""After a run broke, only other replicas may claim its turn for this long."""
PAGE = 256
"""Lapsed approvals of a page, at most."""
OLDEST = 32
"""A claim picks among this many turns of a tenant that have been due longest."""


class Leases(Part):
    """Implements `Leases`, `Maintenance`, and `SessionStore.request_cancel`."""

    _last_tenant = ""

    async def claim(self, owner: str, *, lease: timedelta, without: Busy = NONE_BUSY) -> Claim | None:
        await self._enter("claim")
        now = self._database.now()
        due = sorted(
            (stored.wake_at, number, stored)
            for number, stored in enumerate(self._database.sessions.values())
            if stored.wake_at is not None and stored.wake_at <= now and self._is_claimable(stored)
            if not _avoids(stored, owner, now)
            if stored.session.tenant not in without.tenants and stored.session.agent not in without.agents
        )
        if not due:
            return None
        tenants = {stored.session.tenant for _, _, stored in due}
        self._last_tenant = min(tenants, key=lambda tenant: (tenant <= self._last_tenant, tenant))
        oldest = [entry for entry in due if entry[2].session.tenant == self._last_tenant][:OLDEST]
        wake_at, _, stored = self._random.choice(oldest)
        with self._changing(stored, own=True):
            stored.fence += 1
            stored.owner, stored.lease_until, stored.wake_at = owner, now + lease, None
        return Claim(
            tenant=stored.session.tenant,
            session_id=stored.session.id,
            agent=stored.session.agent,
            turn_id=stored.active_turn,
            fence=stored.fence,
            lapses=stored.lapses,
            late_by=now - wake_at,
            lost_owners=len(self._database.still_lost(stored)),
            broken_runs=stored.broken.times if stored.broken else 0,
            more=len(due) > 1,
            sent_at=lease_clock.now(),
        )

    async def give_back(self, key: SessionKey, *, owner: str, fence: int, broken: bool = False) -> bool:
        await self._enter("give_back")
        stored = self._database.sessions.get(key)
        if stored is None or (stored.owner, stored.fence) != (owner, fence):
            return False
        now = self._database.now()
        with self._changing(stored):
            stored.owner, stored.lease_until, stored.wake_at = "", None, now
            if broken:
                before = stored.broken.times if stored.broken else 0
                others_first = OTHERS_FIRST if not before and self._database.others_alive(owner) else timedelta()
                stored.broken = BrokenRuns(before + 1, owner, now + others_first)
                if before > 1:
                    stored.wake_at = now + min(timedelta(minutes=1), timedelta(seconds=0.25) * 2**before)
        return True

    async def renew(self, key: SessionKey, *, owner: str, fence: int, lease: timedelta) -> bool:
        await self._enter("renew")
        return self._renew(key, owner=owner, fence=fence, lease=lease)

    async def renew_all(
        self, leases: Mapping[SessionKey, int], *, owner: str, lease: timedelta
    ) -> Mapping[SessionKey, bool]:
        await self._enter("renew")
        return {key: self._renew(key, owner=owner, fence=fence, lease=lease) for key, fence in leases.items()}

    def _renew(self, key: SessionKey, *, owner: str, fence: int, lease: timedelta) -> bool:
        stored = self._database.sessions.get(key)
        if stored is None or (stored.owner, stored.fence) != (owner, fence):
            return False
        stored.lease_until = self._database.now() + lease
        return True

    async def request_cancel(self, key: SessionKey, cancel: Cancel) -> bool:
        await self._enter("request_cancel")
        stored = self._database.sessions.get(key)
        if stored is None or not cancel.turn_id or stored.active_turn != cancel.turn_id or not stored.owner:
            return False
        if stored.cancel.turn_id != cancel.turn_id:
            with self._changing(stored):
                stored.cancel = cancel
        return True

    async def cancelled_among(self, owned: Sequence[SessionKey]) -> Sequence[str]:
        await self._enter("cancelled_among")
        return [key.session_id for key in owned if not self._is_undisturbed(self._database.sessions.get(key))]

    async def requeue_lapsed(self, *, lapsed_by: datetime | None = None, rescues: bool = True) -> int:
        await self._enter("requeue_lapsed")
        now = self._database.now()
        lapsed_by = now if lapsed_by is None else min(now, lapsed_by)
        return sum(self._requeue(stored, lapsed_by, rescues=rescues) for stored in self._database.sessions.values())

    async def lapsed_approvals(self) -> AsyncIterator[LapsedPage]:
        await self._enter("lapsed_approvals")
        number, replicas = self._database.share(self._replica)
        lapsed = self._lapsed()
        share = lapsed[len(lapsed) * number // replicas : len(lapsed) * (number + 1) // replicas]
        for first in range(0, len(share), PAGE):
            yield LapsedPage(share[first : first + PAGE], max(0, len(share) - first - PAGE))
        if replicas > 1:
            late = self._lapsed(ago=SHARE_KEPT)[::-1]
            before = len(late) * number // replicas
            yield LapsedPage([*late[before:], *late[:before]], 0)

    async def expiring_approvals(self) -> AsyncIterator[Sequence[Approval]]:
        await self._enter("expiring_approvals")
        now = self._database.now()
        due = [
            approval
            for approval in self._pending()
            if approval.expiring_time is not None and approval.expiring_time <= now
        ]
        for first in range(0, len(due), PAGE):
            yield due[first : first + PAGE]

    def _lapsed(self, *, ago: timedelta = timedelta()) -> Sequence[Approval]:
        """Returns the pending approvals that lapsed `ago`, oldest expiry first."""
        until = self._database.now() - ago
        lapsed = (approval for approval in self._pending() if approval.expire_time <= until)
        return sorted(lapsed, key=lambda approval: approval.expire_time)

    async def snapshots(self, turns: Collection[TurnKey]) -> Mapping[TurnKey, Snapshot]:
        await self._enter("snapshots")
        visible = {turn: self._database.visible(turn.session) for turn in turns}
        now = self._database.now()
        return {
            turn: stored.snapshot(now, turn_id=turn.turn_id) for turn, stored in visible.items() if stored is not None
        }

    async def active_sessions(self) -> int:
        await self._enter("active_sessions")
        return sum(bool(stored.active_turn) for stored in self._database.sessions.values())

    async def waiting_turns(self) -> UnclaimedTurns:
        await self._enter("waiting_turns")
        now = self._database.now()
        sessions = (
            stored for stored in self._database.sessions.values() if stored.active_turn and not stored.suspended
        )
        waits = [now - stored.wake_at for stored in sessions if stored.wake_at is not None and stored.wake_at <= now]
        return UnclaimedTurns(len(waits), max(waits, default=timedelta()))

    async def pending_approvals(self) -> int:
        await self._enter("pending_approvals")
        return sum(1 for _ in self._pending())

    def _pending(self) -> Iterator[Approval]:
        approvals = (stored.approvals.values() for stored in self._database.sessions.values())
        return (
            approval for of_session in approvals for approval in of_session if approval.state is ApprovalState.PENDING
        )

    def _is_claimable(self, stored: StoredSession) -> bool:
        return (
            bool(stored.active_turn) and stored.lease_until is None and not stored.suspended and self._supports(stored)
        )

    def _supports(self, stored: StoredSession) -> bool:
        return max(stored.needs, stored.log_needs) <= self._schema

    def _is_undisturbed(self, stored: StoredSession | None) -> bool:
        return (
            stored is not None
            and stored.lease_until is not None
            and stored.lease_until > self._database.now()
            and stored.cancel.turn_id != stored.active_turn
            and not stored.suspended
        )

    def _requeue(self, stored: StoredSession, lapsed_by: datetime, *, rescues: bool) -> bool:
        """Makes the session's turn claimable if no owner will run it otherwise. Returns True if it did."""
        now, wake_at, lapses = self._database.now(), self._database.now(), stored.lapses
        active_turn, queue = stored.active_turn, stored.queue
        if active_turn and stored.lease_until is not None and stored.lease_until <= lapsed_by:
            wake_at = now + min(timedelta(seconds=15), timedelta(seconds=0.5) * (2**lapses - 1))
            lapses += 1
            self._judge_lost_owners(stored, stored.lease_until)
        elif not rescues:
            return False
        elif not active_turn and queue:
            active_turn, queue, lapses = queue[0], queue[1:], 0
        elif not self._is_idle(stored):
            return False
        with self._changing(stored):
            stored.owner, stored.lease_until, stored.wake_at, stored.lapses = "", None, wake_at, lapses
            stored.active_turn, stored.queue = active_turn, queue
        return True

    def _judge_lost_owners(self, stored: StoredSession, lease_until: datetime) -> None:
        """Adds the owner of a lapsed lease to the lost ones if its process is gone."""
        stored.lost = self._database.still_lost(stored)
        fence, process = stored.writer
        if fence != stored.fence or process == self._process:
            return
        heartbeat, last = self._database.heartbeats.get(stored.owner), None
        if heartbeat is None:
            return
        if heartbeat.process == process:
            lease, last = heartbeat.silent_after, heartbeat.at
            if not lease_until - 2 * lease <= last <= lease_until - lease / 2:
                return
        stored.lost.append(LostOwner(stored.owner, process, last))

    def _is_idle(self, stored: StoredSession) -> bool:
        """Returns True if the turn has no lease and no wake-up, and awaits no answer that may still come."""
        turn = stored.turns.get(stored.active_turn)
        if turn is None or stored.wake_at is not None or not self._is_claimable(stored):
            return False
        if turn.state is TurnState.AWAITING_TOOL:
            return not _awaits_client(call.state for call in stored.calls.values() if call.turn_id == turn.id)
        return turn.state.moving or (turn.state.waits_for_people and not stored.pending(turn.id))


def _avoids(stored: StoredSession, owner: str, now: datetime) -> bool:
    """Returns True if the owner's run of the turn broke just now: others may claim it first."""
    return stored.broken is not None and stored.broken.by == owner and stored.broken.until > now


def _awaits_client(states: Iterable[CallState]) -> bool:
    return CallState.REQUESTED in states
