"""The values between the engine and a store: what a decision reads, what it stores, and the result of a commit."""

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Final, NamedTuple

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.audit import AuditRecord, Origin
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import BelongsToSession, Session
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn
from turnkeeper.errors import RequestIdReused


class LogEnd(NamedTuple):
    """Names a log's history up to an event: two histories that differ before it have different ends there."""

    sequence: int
    """The event's number."""
    changeset_id: str = ""
    """The changeset that stored it; empty if that is not known: then any history with such an event has this end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head(BelongsToSession):
    """The part of a session that every changeset writes: its last number, who owns its turn, and what waits."""

    session_id: str
    tenant: str
    last_seq: int
    """The number of the log's last event."""
    fence: int
    """Grows with every change of ownership and never shrinks."""
    owner: str
    """Empty if no owner holds the lease."""
    owned: bool
    """True if the lease had not lapsed by the store's clock when the head was read."""
    active_turn: str
    """The turn that runs or waits; empty for none."""
    queue: tuple[str, ...]
    """The turns behind the active one, in order."""
    cancel: "Cancel"
    """The turn that its owner is to cancel."""
    lapses: int
    """Leases that lapsed since the last changeset of an owner, for any reason: what that owner streamed is void."""
    now: datetime
    """The store's clock at the reading."""
    revision: int = 0
    """Grows with every changeset, claim, request to cancel and sweep, with events or without; not with a renewal."""
    needs: int = 0
    """The schema that a replica must support to own the active turn; 0: every replica does."""
    log_needs: int = 0
    """The schema that a replica must support to own any turn of this session; 0: every replica does."""
    compacted_to: int = 0
    """Streams begin above this number; events up to it may be trimmed."""
    suspended: bool = False
    """No owner may claim the session's turn."""
    deleted: bool = False
    """Hidden from readers that do not ask for deleted sessions."""
    last_changeset: str = ""
    """The changeset that stored the log's last event; empty if it was a replica of an older version."""

    @property
    def end(self) -> LogEnd:
        """Returns the log's end."""
        return LogEnd(self.last_seq, self.last_changeset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """A request to cancel, kept on the head until the turn's owner has seen it. All fields are empty for none."""

    turn_id: str = ""
    by: str = ""
    """The principal of the request."""
    reason: str = ""
    """A CancelReason."""
    origin: Origin | None = None
    """Who goes on record with the cancellation: an operator; None for the session's owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a decision needs. The head is read first, so a change after it makes the decision's changeset a Conflict."""

    head: Head
    session: Session
    turn: Turn | None
    """The turn that the read names, or the head's active turn, or None."""
    calls: tuple[Call, ...]
    """The turn's open tool calls (`Call.is_open`), in order of `message_id` and `position`.

    The others are left out: a turn may have had any number of them.
    """
    approvals: tuple[Approval, ...]
    """The turn's PENDING approvals."""
    request: "RequestRecord | None" = None
    """What the request that the read names did before; None if nothing."""

    @property
    def is_torn(self) -> bool:
        """Returns True if the active turn has ended since the head was read: a decision needs another reading."""
        return self.turn is not None and self.turn.id == self.head.active_turn and self.turn.state.ended


class LeaseChange(Enum):
    """What a changeset does with the lease."""

    KEEP = "keep"
    """The owner's changeset extends it; any other leaves it alone."""
    TAKE = "take"
    """fence + 1, leased to `HeadChange.owner`."""
    RELEASE = "release"
    """No owner, no lease; the fence stays."""
    BREAK = "break"
    """fence + 1, no owner, no lease: the former owner is fenced from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadChange:
    """What a changeset changes on the head, besides `last_seq`. None and KEEP leave a field as it is."""

    lease: LeaseChange = LeaseChange.KEEP
    owner: str = ""
    """The new owner, with TAKE."""
    lease_for: timedelta = timedelta()
    """The lease lasts this long from now, with TAKE, or with KEEP in an owner's changeset."""
    active_turn: str | None = None
    """Empty: the session has no active turn any more."""
    queue: tuple[str, ...] | None = None
    wake: timedelta | None = None
    """Makes the active turn claimable this long from now (zero: at once).

    A changeset that takes the lease, or leaves no active turn, clears an earlier wake-up; so does one of the owner that
    releases the lease without a `wake`.
    """
    cancel: Cancel | None = None
    progress: bool = False
    """A whole message or a tool's result is stored: owners that were lost before do not count any more."""
    needs: int | None = None
    """From now on only a replica that supports this schema may own the active turn. Ends with the turn, and does not
    shrink before."""
    log_needs: int | None = None
    """The same for every turn of the session, for good: the changeset stores part of a model's context in a form that
    older versions do not know."""
    suspended: bool | None = None
    """True keeps claims away."""
    deleted: bool | None = None
    """True hides the session; the time until its purge starts by the store's clock."""

    def owner_after(self, owner: str) -> str:
        """Returns who has the lease after this change, if it was `owner` before; empty if no owner has it then."""
        if self.lease is LeaseChange.KEEP:
            return owner
        return self.owner if self.lease is LeaseChange.TAKE else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey(BelongsToSession):
    """Identifies a request of a caller: its repeats have the same key."""

    tenant: str
    session_id: str
    principal: str
    family: str
    """Groups the RPCs that share their request ids: `message`, `retry_turn`."""
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What a request did: the answer to its repeats."""

    key: RequestKey
    fingerprint: str
    """A hash of the request's content."""
    turn_id: str
    sequence: int
    """The number of the effect's first event."""
    made_session_id: str = ""
    """The session that the request created, if it is not the key's own."""

    def check_same(self, fingerprint: str) -> None:
        """Raises RequestIdReused if a request with this fingerprint is another one than the record's."""
        if fingerprint != self.fingerprint:
            raise RequestIdReused(session_id=self.key.session_id, metadata={"request_id": self.key.request_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """A session that a changeset creates, as it was before the decision, with the version of its agent."""

    session: Session
    agent: Agent

    def head(self, *, now: datetime) -> Head:
        """Returns the head on which the decision is made: the log has no event yet. `now` is the store's clock."""
        return Head(
            session_id=self.session.id,
            tenant=self.session.tenant,
            last_seq=0,
            fence=0,
            owner="",
            owned=False,
            active_turn="",
            queue=(),
            cancel=Cancel(),
            lapses=0,
            now=now,
            revision=self.session.first_revision,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A session that is being made from the log of another."""

    session: Session
    """As it was when its id was reserved: every attempt at the same fork makes the same events from it."""
    source_session_id: str
    source_sequence: int
    """The last event of the source that counts."""
    log_needs: int = 0
    """The source's `Head.log_needs`: an owner of the fork's turns must understand what was copied."""
    copied: int = 0
    """How many of the fork's events are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalChange:
    """An approval that leaves PENDING, or changes there.

    Written only if the stored approval is still PENDING, in the same round, with the same hash of the arguments.
    """

    approval: Approval
    lapsed: bool | None
    """False: written only before its expiry; True: only after it; None: either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changeset(BelongsToSession):
    """Everything that one decision changes, stored whole or not at all.

    Fields that are *as read* must still hold when it is stored; otherwise the result is Conflict. Conflict is also the
    result if a call in it got a late result since it was read.
    """

    changeset_id: str
    """Unique; stored on the events."""
    tenant: str
    session_id: str
    last_seq: int
    """The head's, as read."""
    last_changeset: str = ""
    """The head's, as read, so that nothing is stored behind another history; empty if it is not compared."""
    fence: int | None
    """The owner's; None in a changeset of any other writer."""
    owner: str = ""
    """The owner's name: in a restored database, another owner may have the same fence. Empty if it is not compared."""
    head_fence: int
    """The head's, as read; equal to `fence` in an owner's changeset."""
    cancel: str
    """`Head.cancel.turn_id`, as read."""
    events: tuple[NewEvent, ...]
    head: HeadChange = field(default_factory=HeadChange)
    session: Session | None = None
    """None leaves the session as it is, except for its `update_time`."""
    wanted_until: float = math.inf
    """Monotonic seconds: nothing is stored if its transaction has not begun by then: its caller no longer waits."""
    new_turns: tuple[Turn, ...] = ()
    """Inserted: they must not exist yet. The same holds for the other `new_` fields."""
    turns: tuple[Turn, ...] = ()
    """Replaced by id: they must exist. The same holds for `calls`."""
    turn_as_read: Turn | None = None
    """One of `turns`, as it is stored as long as the head is as read: the same values need not be written again."""
    session_as_read: Session | None = None
    """The same of `session`."""
    new_calls: tuple[Call, ...] = ()
    calls: tuple[Call, ...] = ()
    new_approvals: tuple[Approval, ...] = ()
    approvals: tuple[ApprovalChange, ...] = ()
    request: RequestRecord | None = None
    """The record of the request that the changeset carries out."""
    audit: tuple[AuditRecord, ...] = ()
    """What a caller is on record for: inserted together with the effect. See `AuditStore`."""
    revision: int | None = None
    """The head's, as read, so that a changeset without events, or a claim, makes this one a Conflict too.

    None in an owner's changeset: it is not compared, as the fence is enough.
    """
    leased: bool = False
    """Another owner had the lease at the reading, and is likely to write as well."""
    creates: Creation | None = None
    """The session that is inserted: it must not exist yet. What is as read is as in `Creation.head`."""

    def is_owned_by(self, owner: str, *, fence: int) -> bool:
        """Returns True if this owner with this fence, as in the head, is the one whose changeset this is."""
        return fence == self.fence and (owner == self.owner if self.owner else bool(owner))

    @property
    def next_fence(self) -> int:
        """Returns the head's fence once this is stored."""
        return self.head_fence + (self.head.lease in (LeaseChange.TAKE, LeaseChange.BREAK))


class StoredEvent(NamedTuple):
    """A durable event. A NamedTuple, as logs are read by the thousand: it is made in a third of a dataclass's time."""

    sequence: int
    kind: str
    turn_id: str
    payload: bytes
    """The wire form of the whole event, its number included."""
    changeset_id: str = ""
    """The changeset that stored it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The changeset is stored, on a majority, journaled."""

    last_seq: int
    fence: int
    """The head's, after the changeset."""
    events: tuple[StoredEvent, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing was stored: something that the decision read has changed. Read again and decide again."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """Nothing was stored: another owner has the session. Stop."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Nothing was stored: the request had its effect before, durably."""

    record: RequestRecord
    """The record of that effect."""


CommitResult = Committed | Conflict | Fenced | Duplicate


@dataclass(frozen=True, slots=True)
class Busy:
    """The agents and tenants of which a replica runs as many turns as it may."""

    agents: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()


NONE_BUSY: Final = Busy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(BelongsToSession):
    """A turn that was leased to the claiming owner."""

    tenant: str
    session_id: str
    turn_id: str
    fence: int
    lapses: int
    """`Head.lapses` at the claim."""
    late_by: timedelta
    """How long the turn had been claimable."""
    lost_owners: int = 0
    """Owners that were lost with their process since the turn's last progress; a slow or paused owner is not lost."""
    broken_runs: int = 0
    """Runs of this turn that broke on a defect."""
    agent: str = ""
    """The name of the session's agent; empty if an older version created the session."""
    more: bool = False
    """Other turns were due as well."""
    sent_at: float = field(default=0.0, compare=False)
    """When the write that leased the turn was sent, by the lease clock."""
