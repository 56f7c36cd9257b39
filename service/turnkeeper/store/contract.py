"""What the engine asks of a store. Each docstring is the specification; `tests/contracts/` holds the suite.

The promises live here: a session's events are numbered without a gap and become visible in that order; a stale owner's
write is refused; an effect and the record of its request are stored together or not at all. Times that decide
(leases, expiry, wake-ups) are set and compared by the store's own clock. Every method takes the tenant, except those
that serve this replica's own work and return it.

Any method raises ServiceUnavailable when the database cannot be reached or does not answer in time.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import Call, ToolResult
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.store.filters import ApprovalFilter, SessionFilter
from turnkeeper.store.hints import Hint, Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
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
    `message_id` and `position`; `approvals` are that turn's PENDING approvals.
    """

    head: Head
    session: Session
    turn: Turn | None
    calls: tuple[Call, ...]
    approvals: tuple[Approval, ...]


class Lease(Enum):
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

    lease: Lease = Lease.KEEP
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
class RequestKey:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A session that is being made from another one's log. `copied` of its events are stored.

    `session` is as it was when its id was taken: every try of the same fork makes the same events from it.
    """

    session: Session
    source_session_id: str
    source_sequence: int
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
class Step:
    """Everything that one decision changes; stored whole or not at all.

    `step_id` is unique and stored on the events. `last_seq` and `cancel` (the turn id) are as read: a head that
    moved makes it Stale.
    `revision` as read, for anybody but the owner: a step without events, or a claim, makes it Stale too. None: not
    compared; an owner needs no more than its fence.
    A call that got a late result since it was read makes it Stale.
    `fence`: the owner's, or None for anybody else. `new_*` are inserted and must not exist; the others are replaced by
    id and must exist. `session` None leaves the session's document alone, but for its `update_time`.
    """

    step_id: str
    tenant: str
    session_id: str
    last_seq: int
    fence: int | None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """A durable event as it is stored: `payload` is the wire form of the whole event, its number included."""

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
class Stale:
    """Nothing was stored: something moved. Read again and decide again; never send the same values again."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """Nothing was stored: another owner has the session. Stop."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Nothing was stored: the request had its effect before, durably. This is it."""

    record: RequestRecord


Verdict = Committed | Stale | Fenced | Duplicate


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A turn is this owner's until its lease ends. `late_by`: how long it had been claimable."""

    tenant: str
    session_id: str
    turn_id: str
    fence: int
    lapses: int
    late_by: timedelta


class Store(Protocol):
    async def create_session(self, session: Session, agent: Agent, *, event: NewEvent) -> Session | None:
        """Store a new session with its first event, and its agent's version if this tenant has none yet.

        None when it was created now; the one that has this id, re-read durably, when there is one already.
        """
        ...

    async def reserve_fork(self, fork: Fork) -> Fork | None:
        """Take the new session's id; from here on no other session gets it, and nobody sees that it is taken.

        The fork that has the id, as it was first taken and with what was copied since: this one, or another that the
        caller must compare. None when a whole session has the id.
        """
        ...

    async def copy_events(self, fork: Fork, events: Sequence[NewEvent]) -> Fork | None:
        """Store the next of the fork's events, of which all are given, as many as one transaction should have.

        The fork as it is then, also when another try was faster; None when it is no fork any more.
        """
        ...

    async def finish_fork(
        self, fork: Fork, session: Session, *, turns: Sequence[Turn], calls: Sequence[Call], request: RequestRecord
    ) -> RequestRecord:
        """Make it visible, with its turns, its calls and the request's record, in one transaction.

        The record that holds: this one, or that of the try that was first.
        """
        ...

    async def snapshot(
        self, tenant: str, session_id: str, *, turn_id: str = "", deleted: bool = False
    ) -> Snapshot | None:
        """What a decision about the session, or about this turn of it, needs; None when there is no such session.

        A deleted one counts as absent unless `deleted` asks for it; one that is being purged always does.
        """
        ...

    async def commit(self, step: Step) -> Verdict:
        """Store the step in one transaction, on a majority.

        Returns only what is known to be so: an unknown outcome is resolved by the `step_id`. Raises
        ServiceUnavailable when it stays unknown beyond the operation's deadline. A second call with the same
        `step_id` finds what the first one did.
        """
        ...

    async def keep_late_result(
        self, tenant: str, session_id: str, tool_call_id: str, *, attempt: int, fence: int, result: ToolResult
    ) -> bool:
        """Write on the ledger what a tool returned after its owner had lost the lease; no event, no number.

        True when it is kept: for this start alone, once (the same again is True), while the call has no result of its
        tool's. A PENDING approval of kind OUTCOME shows it. A step on the call that was decided before is Stale.
        """
        ...

    async def find_request(self, key: RequestKey) -> RequestRecord | None:
        """What this request made, durably, or None; None, too, while its session is deleted."""
        ...

    async def request_cancel(self, tenant: str, session_id: str, cancel: Cancel) -> bool:
        """Ask the turn's owner to cancel it. False, and nothing is stored, unless it is active and owned.

        A second wish for the same turn is True and changes nothing.
        """
        ...

    async def events(  # noqa: PLR0913 - a query has as many parts as it has filters
        self,
        tenant: str,
        session_id: str,
        *,
        after: int,
        limit: int,
        kinds: frozenset[str] = frozenset(),
        turn_id: str = "",
        until: int = 0,
    ) -> Sequence[StoredEvent]:
        """Durable events numbered above `after` (and up to `until`, when it is not 0), in order, at most `limit`."""
        ...

    async def last_seqs(self, sessions: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        """For each (tenant, session) that exists, the number of its last event; one query."""
        ...

    async def session(self, tenant: str, session_id: str, *, deleted: bool = False) -> tuple[Session, Head] | None:
        """None when there is none. A deleted one counts as absent, as in `snapshot`."""
        ...

    async def sessions(
        self, tenant: str, where: SessionFilter, *, limit: int, after: tuple[datetime, str] | None
    ) -> Sequence[tuple[Session, Head]]:
        """A page by (create_time, id), starting beyond `after`; without the deleted ones."""
        ...

    async def turn(self, tenant: str, session_id: str, turn_id: str) -> Turn | None: ...

    async def turns(
        self,
        tenant: str,
        session_id: str,
        *,
        states: tuple[TurnState, ...],
        limit: int,
        before: int | None,
    ) -> Sequence[Turn]:
        """A page, newest first: those whose `first_sequence` is below `before`."""
        ...

    async def call(self, tenant: str, session_id: str, call_id: str) -> Call | None: ...

    async def approval(self, tenant: str, approval_id: str) -> Approval | None:
        """None, too, while its session is deleted."""
        ...

    async def approvals(
        self, tenant: str, where: ApprovalFilter, *, limit: int, after: tuple[datetime, str] | None
    ) -> Sequence[Approval]:
        """A page by (create_time, id), starting beyond `after`; without those of deleted sessions."""
        ...

    async def agent(self, tenant: str, name: str, version: str) -> Agent | None:
        """The content of a version that a session of this tenant pinned."""
        ...

    async def claim(self, owner: str, *, lease: timedelta) -> Claim | None:
        """Lease the active turn of a session that is due (`wake` reached) to `owner`, or None when none is.

        Only what this store's schema is enough for (`Head.needs`, `Head.log_needs`), and never of a suspended session.
        Two callers never get the same turn; every claim has a fence greater than any before it in that session.
        Picks at random among the 32 that are due longest.
        """
        ...

    async def renew(self, tenant: str, session_id: str, *, owner: str, fence: int, lease: timedelta) -> bool:
        """Extend the lease by `lease` from now; False when the fence moved."""
        ...

    async def cancelled_among(self, owned: Sequence[tuple[str, str]]) -> Sequence[str]:
        """Of these (tenant, session): those suspended, or whose active turn shall be cancelled, or is owned no more."""
        ...

    async def put_pieces(self, pieces: Sequence[Piece]) -> None:
        """Keep previews for half an hour; a second one at the same place changes nothing. They may get lost."""
        ...

    async def pieces(
        self, tenant: str, session_id: str, *, message_id: str, attempt: int, after: int
    ) -> Sequence[Piece]:
        """What is kept of this attempt at a message from byte `after` on, in order; perhaps with gaps."""
        ...

    def hints(self) -> AbstractAsyncContextManager[AsyncIterator[Hint | Piece]]:
        """A hint for each step, claim, sweep and wish in any session from the entry on, in each session in order; none
        for renewals. And other replicas' previews. Raises ServiceUnavailable, on entry and later, when none come any
        more; the next entry goes on where the last one ended, if the database still knows."""
        ...

    async def beat(self, *, silent_after: timedelta) -> None:
        """This replica lives; once it is silent for so long, others end what it was writing. It may write on."""
        ...

    async def requeue_lapsed(self) -> int:
        """End what silent replicas were writing. Then make claimable: active turns whose lease lapsed; sessions with
        a queue but no active turn (its first becomes active); active turns that are AWAITING_APPROVAL or
        AWAITING_OUTCOME without a PENDING approval, or AWAITING_TOOL without a REQUESTED call; and those without lease,
        wake-up and any reason to wait, unless suspended. Of turns that need a newer schema only the first kind, which
        counts a lapse. Returns how many."""
        ...

    async def lapsed_approvals(self, *, limit: int) -> Sequence[Approval]:
        """PENDING approvals whose expiry is past, by the store's clock."""
        ...

    async def active_sessions(self) -> int:
        """How many have a turn that runs or waits, over all tenants: for a gauge."""
        ...

    async def pending_approvals(self) -> int:
        """How many there are, over all tenants: for a gauge."""
        ...

    async def secret(self, name: str) -> bytes:
        """32 random bytes that every replica sees alike; made at the first call."""
        ...

    async def ping(self) -> None:
        """Raises ServiceUnavailable unless the database answers."""
        ...
