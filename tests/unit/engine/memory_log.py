"""Sessions in memory: applies steps under the store's own filters, by a clock that the test moves.

It is the model test's store, and `test_memory_log.py` holds it to the store's contract. Nothing here is concurrent:
what happens at once in production happens here in some order, and the machine tries the orders.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.event import Event, NewEvent, name_of
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.domain.tool import Call, CallState
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.store.changeset import (
    Cancel,
    Changeset,
    Claim,
    CommitResult,
    Committed,
    Conflict,
    Duplicate,
    Fenced,
    Head,
    HeadChange,
    LeaseChange,
    RequestKey,
    RequestRecord,
    Snapshot,
    StoredEvent,
)
from turnkeeper.store.contract import EventCodec

T = TypeVar("T", Turn, Call, Approval)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One durable event: as it is on the wire, as a value, and by whose step."""

    stored: StoredEvent
    event: Event
    changeset_id: str
    fence: int


@dataclass(slots=True, kw_only=True)
class Kept:
    """Everything of one session."""

    session: Session
    log: list[Logged]
    update_time: datetime
    revision: int = 1
    fence: int = 0
    owner: str = ""
    lease_until: datetime | None = None
    wake_at: datetime | None = None
    active_turn: str = ""
    queue: tuple[str, ...] = ()
    cancel: Cancel = field(default_factory=Cancel)
    lapses: int = 0
    silent: dict[str, int] = field(default_factory=dict)
    turns: dict[str, Turn] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    approvals: dict[str, Approval] = field(default_factory=dict)
    requests: dict[RequestKey, RequestRecord] = field(default_factory=dict)

    @property
    def last_seq(self) -> int:
        return len(self.log)

    def pending(self, turn_id: str) -> tuple[Approval, ...]:
        mine = (each for each in self.approvals.values() if each.turn_id == turn_id)
        return tuple(each for each in mine if each.state is ApprovalState.PENDING)


class MemoryLog:
    """The part of a store that decides."""

    def __init__(self, codec: EventCodec, *, now: Callable[[], datetime]) -> None:
        self._codec = codec
        self._now = now
        self.sessions: dict[SessionKey, Kept] = {}

    def create_session(self, session: Session, agent: Agent, *, event: NewEvent) -> Session | None:
        key = session.key
        if key in self.sessions:
            return self.sessions[key].session
        kept = Kept(session=session, log=[], update_time=session.update_time)
        self.sessions[key] = kept
        self._write_events(kept, (event,), changeset_id="", fence=0)
        return None

    def snapshot(self, key: SessionKey, *, turn_id: str = "") -> Snapshot | None:
        kept = self.sessions.get(key)
        if kept is None:
            return None
        asked = turn_id or kept.active_turn
        calls = (call for call in kept.calls.values() if call.turn_id == asked)
        return Snapshot(
            head=self._head(kept),
            session=replace(kept.session, update_time=max(kept.session.update_time, kept.update_time)),
            turn=kept.turns.get(asked),
            calls=tuple(sorted(calls, key=lambda call: (call.message_id, call.position))),
            approvals=kept.pending(asked),
        )

    def commit(self, step: Changeset) -> CommitResult:
        kept = self.sessions.get(step.session_key)
        if kept is None:
            return Conflict()
        if _unmoved(kept, step) and self._fits(kept, step):
            return self._apply(kept, step)
        return _outcome(kept, step)

    def find_request(self, key: RequestKey) -> RequestRecord | None:
        kept = self.sessions.get(key.session_key)
        return None if kept is None else kept.requests.get(key)

    def request_cancel(self, key: SessionKey, cancel: Cancel) -> bool:
        kept = self.sessions[key]
        if not cancel.turn_id or kept.active_turn != cancel.turn_id or not kept.owner:
            return False
        if kept.cancel.turn_id != cancel.turn_id:
            kept.cancel = cancel
            kept.revision += 1
        return True

    def claim(self, owner: str, *, lease: timedelta) -> Claim | None:
        due = [each for each in self.sessions.items() if self._due(each[1])]
        if not due:
            return None
        (tenant, session_id), kept = min(due, key=lambda each: each[1].wake_at or self._now())
        late_by = self._now() - (kept.wake_at or self._now())
        kept.fence, kept.revision = kept.fence + 1, kept.revision + 1
        kept.owner, kept.lease_until, kept.wake_at = owner, self._now() + lease, None
        return Claim(
            tenant=tenant,
            session_id=session_id,
            turn_id=kept.active_turn,
            fence=kept.fence,
            lapses=kept.lapses,
            late_by=late_by,
        )

    def renew(self, key: SessionKey, *, owner: str, fence: int, lease: timedelta) -> bool:
        kept = self.sessions[key]
        if (kept.owner, kept.fence) != (owner, fence):
            return False
        kept.lease_until = self._now() + lease
        return True

    def requeue_lapsed(self) -> int:
        return sum(self._requeue(kept) for kept in self.sessions.values())

    def lapsed_approvals(self, *, limit: int) -> list[Approval]:
        lapsed = (each for each in self._pending() if each.expire_time <= self._now())
        return sorted(lapsed, key=lambda each: each.expire_time)[:limit]

    def pending_approvals(self) -> int:
        return len(self._pending())

    def turn(self, key: SessionKey, turn_id: str) -> Turn | None:
        return self.sessions[key].turns.get(turn_id)

    def approval(self, tenant: str, approval_id: str) -> Approval | None:
        mine = (kept for key, kept in self.sessions.items() if key.tenant == tenant)
        return next((kept.approvals[approval_id] for kept in mine if approval_id in kept.approvals), None)

    def events(self, key: SessionKey, *, after: int, limit: int) -> list[StoredEvent]:
        kept = self.sessions.get(key)
        return [] if kept is None else [each.stored for each in kept.log[after : after + limit]]

    # --- steps -------------------------------------------------------------------------------------------------

    def _pending(self) -> list[Approval]:
        asked = (each for kept in self.sessions.values() for each in kept.approvals.values())
        return [each for each in asked if each.state is ApprovalState.PENDING]

    def _head(self, kept: Kept) -> Head:
        return Head(
            session_id=kept.session.id,
            tenant=kept.session.tenant,
            last_seq=kept.last_seq,
            fence=kept.fence,
            owner=kept.owner,
            owned=kept.lease_until is not None and kept.lease_until > self._now(),
            active_turn=kept.active_turn,
            queue=kept.queue,
            cancel=kept.cancel,
            lapses=kept.lapses,
            now=self._now(),
            revision=kept.revision,
        )

    def _fits(self, kept: Kept, step: Changeset) -> bool:
        """What is new is not there, what changes is, and each approval leaves PENDING as it was seen."""
        rounds = {(each.tool_call_id, each.round) for each in kept.approvals.values()}
        new = (
            _absent(kept.turns, step.new_turns)
            and _absent(kept.calls, step.new_calls)
            and _absent(kept.approvals, step.new_approvals)
            and not any((each.tool_call_id, each.round) in rounds for each in step.new_approvals)
        )
        changed = (
            _by_id(step.turns).keys() <= kept.turns.keys()
            and _by_id(step.calls).keys() <= kept.calls.keys()
            and all(self._decidable(kept, each.approval, each.lapsed) for each in step.approvals)
        )
        return new and changed and (step.request is None or step.request.key not in kept.requests)

    def _decidable(self, kept: Kept, decided: Approval, lapsed: bool | None) -> bool:
        there = kept.approvals.get(decided.id)
        return (
            there is not None
            and there.state is ApprovalState.PENDING
            and (there.round, there.arguments_hash) == (decided.round, decided.arguments_hash)
            and lapsed in (None, there.expire_time <= self._now())
        )

    def _apply(self, kept: Kept, step: Changeset) -> Committed:
        by_owner = step.fence is not None
        self._change_lease(kept, step.head, by_owner=by_owner)
        self._change_wake(kept, step.head, by_owner=by_owner)
        kept.revision += 1
        if by_owner or step.head.active_turn is not None:
            kept.lapses = 0
        for name in ("active_turn", "queue", "cancel"):
            if (value := getattr(step.head, name)) is not None:
                setattr(kept, name, value)
        if step.session is not None:
            kept.session = step.session
            kept.update_time = step.session.update_time
        elif step.events:
            kept.update_time = step.events[-1].at
        kept.turns |= _by_id((*step.new_turns, *step.turns))
        kept.calls |= _by_id((*step.new_calls, *step.calls))
        kept.approvals |= _by_id((*step.new_approvals, *(each.approval for each in step.approvals)))
        if step.request is not None:
            kept.requests[step.request.key] = step.request
        if not step.events:
            kept.silent[step.changeset_id] = kept.fence
        return self._write_events(kept, step.events, changeset_id=step.changeset_id, fence=kept.fence)

    def _change_lease(self, kept: Kept, change: HeadChange, *, by_owner: bool) -> None:
        now = self._now()
        match change.lease:
            case LeaseChange.KEEP:
                if by_owner and change.lease_for:
                    kept.lease_until = now + change.lease_for
            case LeaseChange.TAKE:
                kept.fence, kept.owner, kept.lease_until = kept.fence + 1, change.owner, now + change.lease_for
            case LeaseChange.RELEASE:
                kept.owner, kept.lease_until = "", None
            case LeaseChange.BREAK:
                kept.fence, kept.owner, kept.lease_until = kept.fence + 1, "", None

    def _change_wake(self, kept: Kept, change: HeadChange, *, by_owner: bool) -> None:
        if change.lease is LeaseChange.TAKE or change.active_turn == "":
            kept.wake_at = None
        elif change.wake is not None:
            kept.wake_at = self._now() + change.wake
        elif change.lease is LeaseChange.RELEASE and by_owner:
            kept.wake_at = None

    def _write_events(self, kept: Kept, events: Iterable[NewEvent], *, changeset_id: str, fence: int) -> Committed:
        written = []
        for new in events:
            sequence = kept.last_seq + 1
            payload = self._codec.number(self._codec.encode(kept.session.id, new), sequence)
            kind = name_of(new.payload)
            stored = StoredEvent(sequence=sequence, kind=kind, turn_id=new.turn_id, payload=payload)
            event = Event(
                sequence=sequence, turn_id=new.turn_id, attempt=new.attempt, create_time=new.at, payload=new.payload
            )
            kept.log.append(Logged(stored=stored, event=event, changeset_id=changeset_id, fence=fence))
            written.append(stored)
        return Committed(last_seq=kept.last_seq, fence=kept.fence, events=tuple(written))

    # --- claims ------------------------------------------------------------------------------------------------

    def _due(self, kept: Kept) -> bool:
        free = bool(kept.active_turn) and kept.lease_until is None
        return free and kept.wake_at is not None and kept.wake_at <= self._now()

    def _requeue(self, kept: Kept) -> bool:
        now = self._now()
        wake_at = now
        if kept.active_turn and kept.lease_until is not None and kept.lease_until <= now:
            wake_at = now + min(timedelta(seconds=15), timedelta(seconds=0.5) * (2**kept.lapses - 1))
            kept.lapses += 1
        elif not kept.active_turn and kept.queue:
            kept.active_turn, kept.queue, kept.lapses = kept.queue[0], kept.queue[1:], 0
        elif not self._forgotten(kept):
            return False
        kept.owner, kept.lease_until, kept.wake_at, kept.revision = "", None, wake_at, kept.revision + 1
        return True

    def _forgotten(self, kept: Kept) -> bool:
        turn = kept.turns.get(kept.active_turn)
        if turn is None or kept.lease_until is not None or kept.wake_at is not None:
            return False
        if turn.state is TurnState.AWAITING_TOOL:
            mine = (call for call in kept.calls.values() if call.turn_id == turn.id)
            return all(call.state is not CallState.REQUESTED for call in mine)
        return turn.state.moving or (turn.state.waits_for_people and not kept.pending(turn.id))


def _unmoved(kept: Kept, step: Changeset) -> bool:
    return (
        (kept.last_seq, kept.cancel.turn_id) == (step.last_seq, step.cancel)
        and step.changeset_id not in kept.silent
        and step.revision in (None, kept.revision)
        and (step.fence is None or (step.fence == kept.fence and bool(kept.owner)))
    )


def _outcome(kept: Kept, step: Changeset) -> CommitResult:
    """Of a step that was not stored now: its own trace, its request's first effect, or who was in the way."""
    mine = [each for each in kept.log if each.changeset_id == step.changeset_id]
    if mine:
        last = mine[-1]
        return Committed(last_seq=last.stored.sequence, fence=last.fence, events=tuple(each.stored for each in mine))
    if step.changeset_id in kept.silent:
        return Committed(last_seq=step.last_seq, fence=kept.silent[step.changeset_id], events=())
    if step.request is not None and step.request.key in kept.requests:
        return Duplicate(kept.requests[step.request.key])
    if step.fence is not None and (kept.fence != step.fence or not kept.owner):
        return Fenced()
    return Conflict()


def _absent(there: Mapping[str, T], new: Iterable[T]) -> bool:
    return not (_by_id(new).keys() & there.keys())


def _by_id(members: Iterable[T]) -> dict[str, T]:
    return {each.id: each for each in members}
