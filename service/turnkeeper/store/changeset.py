"""What a decision reads, what it stores, and what became of it: the values between the engine and a store."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple

from turnkeeper.domain.approval import Approval
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import BelongsToSession, Session
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn
from turnkeeper.errors import CursorExpired, RequestIdReused


@dataclass(frozen=True, slots=True, kw_only=True)
class Head(BelongsToSession):
    """A session's hot place: its last number, who runs what, what waits.

    `fence` grows with every change of ownership and never shrinks. `owner` is empty when nobody holds the lease.
    `owned`: the lease had not lapsed by the store's clock when this was read. `cancel` says which turn is to be
    cancelled; its `turn_id` is empty when none is. `lapses` counts lapsed leases since the last owner's step.
    `now` is the store's clock at the reading. `revision` grows with every step, claim, wish and sweep, events or not;
    a renewal leaves it alone. `compacted_to`: streams begin above this number; what is below may be trimmed.
    `suspended`: nobody may claim its turn. `deleted`: hidden from everybody but who asks for deleted ones.
    `needs` and `log_needs`: the schema that a replica must support to own the active turn, and any turn of this
    session; 0: every replica does.
    """

    session_id: str
    tenant: str
    last_seq: int
    fence: int
    owner: str
    owned: bool
    active_turn: str
    queue: tuple[str, ...]
    cancel: "Cancel"
    lapses: int
    now: datetime
    revision: int = 0
    needs: int = 0
    log_needs: int = 0
    compacted_to: int = 0
    suspended: bool = False
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """A wish kept on the head: the turn, who asked, and why (a CancelReason). All empty: there is none."""

    turn_id: str = ""
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a decision needs, read head first: whatever changed since makes the step that follows Stale.

    `turn` is the one asked for, or the head's active turn, or None. `calls` are that turn's ledger entries, in order of
    `message_id` and `position`; `approvals` are that turn's PENDING approvals. `request`: what the request that was
    asked for has made already.
    """

    head: Head
    session: Session
    turn: Turn | None
    calls: tuple[Call, ...]
    approvals: tuple[Approval, ...]
    request: "RequestRecord | None" = None


class LeaseChange(Enum):
    """What a step does with the lease."""

    KEEP = "keep"
    """The owner's step extends it; anybody else's leaves it alone."""
    TAKE = "take"
    """fence + 1, leased to `HeadChange.owner`."""
    RELEASE = "release"
    """No owner, no lease; the fence stays."""
    BREAK = "break"
    """fence + 1, no owner, no lease: whoever owned it is fenced from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadChange:
    """What a step changes on the head, besides `last_seq`. None and KEEP leave things as they are.

    `wake`: make the active turn claimable this long from now (zero: at once). A step that takes the lease or leaves no
    active turn clears an earlier wake-up; so does a step of the owner that releases without a `wake`.
    `suspended` keeps claims away. `deleted` hides the session; the time until its purge runs by the store's clock.

    `needs`: from this step on only a replica that supports this schema may own the active turn; it ends with the turn.
    `log_needs`: the same for every turn of the session, for good: the step stores what a model's context is made of,
    and older versions do not know. Neither shrinks otherwise.
    """

    lease: LeaseChange = LeaseChange.KEEP
    owner: str = ""
    lease_for: timedelta = timedelta()
    active_turn: str | None = None
    queue: tuple[str, ...] | None = None
    wake: timedelta | None = None
    cancel: Cancel | None = None
    needs: int | None = None
    log_needs: int | None = None
    suspended: bool | None = None
    deleted: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey(BelongsToSession):
    """Whose request it is. `family` groups RPCs that share their ids: `message`, `retry_turn`."""

    tenant: str
    session_id: str
    principal: str
    family: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What a request made: the answer to its repeats. `sequence` is the effect's first event.

    `made_session_id`: the session it made, when it is not the key's own.
    """

    key: RequestKey
    fingerprint: str
    turn_id: str
    sequence: int
    made_session_id: str = ""

    def check_same(self, fingerprint: str) -> None:
        """Raises RequestIdReused if a request with this fingerprint is another one than the record's."""
        if fingerprint != self.fingerprint:
            raise RequestIdReused(session_id=self.key.session_id, metadata={"request_id": self.key.request_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A session that is being made from another one's log. `copied` of its events are stored.

    `session` is as it was when its id was taken: every try of the same fork makes the same events from it. `log_needs`
    is that of its source's head: whoever owns a turn of the fork must understand what was copied.
    """

    session: Session
    source_session_id: str
    source_sequence: int
    log_needs: int = 0
    copied: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalChange:
    """An approval that leaves PENDING, or changes there: written only if it is PENDING still, in the same round, with
    the same hash.

    `lapsed` False: and only before its expiry; True: and only after it; None: either way.
    """

    approval: Approval
    lapsed: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changeset(BelongsToSession):
    """Everything that one decision changes; stored whole or not at all.

    `step_id` is unique and stored on the events. `last_seq` and `cancel` (the turn id) are as read: a head that
    moved makes it Stale.
    `revision` as read, for anybody but the owner: a step without events, or a claim, makes it Stale too. None: not
    compared; an owner needs no more than its fence.
    A call that got a late result since it was read makes it Stale.
    `fence`: the owner's, or None for anybody else. `head_fence`, as read, is the same for an owner; for anybody else a
    head whose fence moved makes it Stale. `leased`: somebody else had the lease, and is likely to write as well.
    `new_*` are inserted and must not exist; the others are replaced by
    id and must exist. `session` None leaves the session's document alone, but for its `update_time`.
    """

    changeset_id: str
    tenant: str
    session_id: str
    last_seq: int
    fence: int | None
    head_fence: int
    cancel: str
    events: tuple[NewEvent, ...]
    head: HeadChange = field(default_factory=HeadChange)
    session: Session | None = None
    new_turns: tuple[Turn, ...] = ()
    turns: tuple[Turn, ...] = ()
    new_calls: tuple[Call, ...] = ()
    calls: tuple[Call, ...] = ()
    new_approvals: tuple[Approval, ...] = ()
    approvals: tuple[ApprovalChange, ...] = ()
    request: RequestRecord | None = None
    revision: int | None = None
    leased: bool = False

    @property
    def next_fence(self) -> int:
        """The head's once this is stored."""
        return self.head_fence + (self.head.lease in (LeaseChange.TAKE, LeaseChange.BREAK))


class StoredEvent(NamedTuple):
    """A durable event as it is stored: `payload` is the wire form of the whole event, its number included.

    Logs are read by the thousand: a tuple is made in a third of a dataclass's time.
    """

    sequence: int
    kind: str
    turn_id: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """It is stored, on a majority, journaled. `fence` is the head's after it."""

    last_seq: int
    fence: int
    events: tuple[StoredEvent, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing was stored: something moved. Read again and decide again; never send the same values again."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """Nothing was stored: another owner has the session. Stop."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Nothing was stored: the request had its effect before, durably. This is it."""

    record: RequestRecord


CommitResult = Committed | Conflict | Fenced | Duplicate


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(BelongsToSession):
    """A turn is this owner's until its lease ends. `late_by`: how long it had been claimable.

    `more`: others were due as well.
    """

    tenant: str
    session_id: str
    turn_id: str
    fence: int
    lapses: int
    late_by: timedelta
    more: bool = False


def check_kept(sequence: int, head: Head) -> None:
    """Raises CursorExpired for a place before which the log may have been trimmed."""
    if sequence < head.compacted_to:
        raise _expired(head.session_id, oldest=head.compacted_to + 1, head=head.last_seq)


def _expired(session_id: str, *, oldest: int, head: int) -> CursorExpired:
    return CursorExpired(session_id=session_id, metadata={"oldest_sequence": str(oldest), "head_sequence": str(head)})
