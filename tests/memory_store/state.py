"""What a store in memory holds: the sessions, and what all replicas share."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.audit import AuditRecord, Seal
from turnkeeper.domain.delegation import Delegation
from turnkeeper.domain.denial import ToolDenial
from turnkeeper.domain.event import Event, NewEvent
from turnkeeper.domain.freeze import Freeze
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn
from turnkeeper.store.changeset import Cancel, Fork, Head, RequestKey, RequestRecord, Snapshot, StoredEvent
from turnkeeper.store.contract import EventCodec
from turnkeeper.store.mongo.events import numbered
from turnkeeper.store.notifications import ApprovalNotification, Notification, PreviewChunk


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent:
    """One durable event: as it is on the wire, and as a value."""

    stored: StoredEvent
    event: Event
    changeset_id: str
    fence: int
    """The head's, after the changeset that stored it."""

    @classmethod
    def of(
        cls, event: NewEvent, *, codec: EventCodec, session_id: str, sequence: int, changeset_id: str, fence: int
    ) -> "LoggedEvent":
        """Returns the event with its number. Raises ValueError if it is too large."""
        value = Event(
            sequence=sequence, turn_id=event.turn_id, attempt=event.attempt, create_time=event.at, payload=event.payload
        )
        stored = numbered(codec, session_id, event, sequence, changeset_id=changeset_id)
        return cls(stored=stored, event=value, changeset_id=changeset_id, fence=fence)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last heartbeat of a replica."""

    at: datetime
    silent_after: timedelta
    process: int
    """Tells apart processes of one name."""


@dataclass(frozen=True, slots=True)
class LostOwner:
    """An owner whose lease lapsed, and whose process's heartbeat stopped within a lease of the last renewal."""

    owner: str
    process: int
    at: datetime | None
    """Its last heartbeat; None if another process had its name by then."""


@dataclass(frozen=True, slots=True)
class BrokenRuns:
    """Runs of the active turn that broke on a defect: how many, and until when their last owner does not claim it."""

    times: int
    by: str
    until: datetime


@dataclass(slots=True, kw_only=True)
class StoredSession:
    """Everything of one session."""

    session: Session
    log: list[LoggedEvent]
    update_time: datetime
    """Of the last changeset with events."""
    revision: int = 1
    fence: int = 0
    owner: str = ""
    lease_until: datetime | None = None
    wake_at: datetime | None = None
    active_turn: str = ""
    queue: tuple[str, ...] = ()
    cancel: Cancel = field(default_factory=Cancel)
    lapses: int = 0
    writer: tuple[int, int] = (0, 0)
    """The fence under which an owner wrote last, and its process."""
    lost: list[LostOwner] = field(default_factory=list)
    """Of the active turn, since its last progress."""
    broken: BrokenRuns | None = None
    needs: int = 0
    log_needs: int = 0
    suspended: bool = False
    deleted: bool = False
    eventless: dict[str, int] = field(default_factory=dict)
    """The changesets without events, by id, with the fence that each left: no event holds them."""
    turns: dict[str, Turn] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    approvals: dict[str, Approval] = field(default_factory=dict)
    requests: dict[RequestKey, RequestRecord] = field(default_factory=dict)

    @property
    def last_seq(self) -> int:
        """The number of the last event."""
        return len(self.log)

    def pending(self, turn_id: str) -> tuple[Approval, ...]:
        """Returns the turn's PENDING approvals."""
        of_turn = (approval for approval in self.approvals.values() if approval.turn_id == turn_id)
        return tuple(approval for approval in of_turn if approval.state is ApprovalState.PENDING)

    def head(self, now: datetime) -> Head:
        """Returns the head as it is read at this time."""
        return Head(
            session_id=self.session.id,
            tenant=self.session.tenant,
            last_seq=self.last_seq,
            fence=self.fence,
            owner=self.owner,
            owned=self.lease_until is not None and self.lease_until > now,
            active_turn=self.active_turn,
            queue=self.queue,
            cancel=self.cancel,
            lapses=self.lapses,
            now=now,
            revision=self.revision,
            needs=self.needs,
            log_needs=self.log_needs,
            suspended=self.suspended,
            deleted=self.deleted,
            last_changeset=self.log[-1].changeset_id,
        )

    def snapshot(self, now: datetime, *, turn_id: str = "", request: RequestRecord | None = None) -> Snapshot:
        """Returns what a decision at this time needs, about the turn `turn_id`, or else about the active one."""
        turn_id = turn_id or self.active_turn
        calls = (call for call in self.calls.values() if call.turn_id == turn_id and call.is_open)
        return Snapshot(
            head=self.head(now),
            session=self.session_as_read(),
            turn=self.turns.get(turn_id),
            calls=tuple(sorted(calls, key=lambda call: (call.message_id, call.position))),
            approvals=self.pending(turn_id),
            request=request,
        )

    def session_as_read(self) -> Session:
        """Returns the session with the time of its last change."""
        return replace(self.session, update_time=max(self.session.update_time, self.update_time))


@dataclass(slots=True)
class UnfinishedFork:
    """A fork whose id is reserved, and the events that are copied so far."""

    fork: Fork
    log: list[LoggedEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Change:
    """What one write made known, and the replica that is not notified because its own worker wrote."""

    notification: Notification
    by: str


@dataclass(slots=True)
class Trail:
    """A tenant's audit trail."""

    records: dict[str, AuditRecord] = field(default_factory=dict)
    sealed: dict[str, int] = field(default_factory=dict)
    """The number of each record's seal, by the record's id."""
    seals: list[Seal] = field(default_factory=list)
    sealer: int = 0
    """The process that has the lease."""
    until: datetime | None = None


@dataclass(slots=True)
class MemoryDatabase:
    """What all replicas share. `now` is the store's clock."""

    now: Callable[[], datetime]
    sessions: dict[SessionKey, StoredSession] = field(default_factory=dict)
    forks: dict[SessionKey, UnfinishedFork] = field(default_factory=dict)
    agents: dict[tuple[str, str, str], Agent] = field(default_factory=dict)
    previews: dict[tuple[SessionKey, str, int, int], PreviewChunk] = field(default_factory=dict)
    secrets: dict[str, bytes] = field(default_factory=dict)
    heartbeats: dict[str, Heartbeat] = field(default_factory=dict)
    """The last heartbeat of each replica, by its name."""
    processes: int = 0
    """How many processes had access so far."""
    trails: dict[str, Trail] = field(default_factory=dict)
    """The audit trails by tenant."""
    freezes: dict[tuple[str, str], Freeze] = field(default_factory=dict)
    """By tenant and agent."""
    denials: dict[tuple[str, str], ToolDenial] = field(default_factory=dict)
    """By tenant and pattern."""
    delegations: dict[tuple[str, str, str], Delegation] = field(default_factory=dict)
    """By tenant, person and delegate."""
    changes: list[Change] = field(default_factory=list)
    listeners: set[asyncio.Event] = field(default_factory=set)
    """Set at each change."""

    def visible(self, key: SessionKey, *, deleted: bool = False) -> StoredSession | None:
        """Returns the session. Returns None if there is none, or if it is deleted, unless `deleted`."""
        stored = self.sessions.get(key)
        return None if stored is None or (stored.deleted and not deleted) else stored

    def put_records(self, *records: AuditRecord) -> None:
        """Stores records of the audit trail. One whose id exists stays as it is."""
        for record in records:
            self.trails.setdefault(record.tenant, Trail()).records.setdefault(record.id, record)

    def new_process(self) -> int:
        """Returns a number that no process had before."""
        self.processes += 1
        return self.processes

    def others_alive(self, replica: str) -> bool:
        """Returns True if another replica's heartbeat is still fresh."""
        return self.share(replica)[1] > 1

    def share(self, replica: str) -> tuple[int, int]:
        """Returns the number of this replica among the living ones, from 0, and how many there are."""
        now = self.now()
        alive = {name for name, heartbeat in self.heartbeats.items() if heartbeat.at + heartbeat.silent_after > now}
        return sorted({replica, *alive}).index(replica), len({replica, *alive})

    def still_lost(self, stored: StoredSession) -> list[LostOwner]:
        """Returns the lost owners of the session's turn without those whose heartbeat has moved since."""
        return [owner for owner in stored.lost if not self._has_moved(owner)]

    def _has_moved(self, owner: LostOwner) -> bool:
        heartbeat = self.heartbeats.get(owner.owner)
        if heartbeat is None:
            return True
        return heartbeat.process == owner.process and (owner.at is None or heartbeat.at > owner.at)

    def announce(self, notification: Notification, *, by: str = "") -> None:
        """Notifies the replicas, except the one named by `by`."""
        self.changes.append(Change(notification, by))
        for listener in self.listeners:
            listener.set()

    def announce_approvals(self, *approvals: Approval) -> None:
        """Notifies all replicas that these approvals have changed."""
        for approval in approvals:
            self.announce(ApprovalNotification(approval.tenant, approval.id))
