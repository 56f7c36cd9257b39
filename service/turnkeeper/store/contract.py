"""What the service asks of a store, by role. Each docstring is the specification; `tests/contracts/` tests it.

What every store guarantees: a session's events are numbered without a gap and become visible in that order. A write of
an owner whose fence is no longer current is refused. An effect and the record of its request are stored together or
not at all. Times that decide (leases, expiry, wake-ups) are set and compared by the store's own clock. A method reads
and writes one tenant only, unless its docstring names all tenants.

Every method raises ServiceUnavailable if the database cannot be reached or does not answer in time.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.domain.tool import Call, ToolResult
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.store.audit import AuditStore
from turnkeeper.store.changeset import (
    NONE_BUSY,
    Busy,
    Cancel,
    Changeset,
    Claim,
    CommitResult,
    Fork,
    Head,
    RequestKey,
    RequestRecord,
    Snapshot,
    StoredEvent,
)
from turnkeeper.store.delegations import DelegationStore
from turnkeeper.store.filters import ApprovalFilter, SessionFilter
from turnkeeper.store.log_ends import LogEnds
from turnkeeper.store.maintenance import Maintenance
from turnkeeper.store.notifications import Notification, PreviewChunk
from turnkeeper.store.operations import OperationStore


class Consistent(Protocol):
    """Reads that show everything that was acknowledged before. Ordinary ones may lag behind it, after an election."""

    def linearizable(self) -> AbstractAsyncContextManager[None]:
        """Makes the reads of this task linearizable inside the `async with` block.

        Raises ServiceUnavailable on entry if no majority confirms that within 2 s.
        """
        ...


class SessionStore(Consistent, Protocol):
    """Sessions, their turns and tool calls, and the records of requests."""

    async def create_session(self, session: Session, agent: Agent, *, event: NewEvent) -> Session | None:
        """Stores a new session with its first event, and the agent's version unless this tenant has it already.

        Returns None if this call created the session; otherwise the session that has the id, re-read from a majority.
        """
        ...

    async def session(self, key: SessionKey, *, deleted: bool = False) -> tuple[Session, Head] | None:
        """Returns the session and its head, or None if there is none.

        A deleted session is returned only with `deleted`, one that is being purged never.
        """
        ...

    async def sessions(
        self, tenant: str, where: SessionFilter, *, limit: int, after: tuple[datetime, str] | None
    ) -> Sequence[tuple[Session, Head]]:
        """Returns a page ordered by (create_time, id), beginning beyond `after`, without deleted sessions."""
        ...

    async def snapshot(
        self, key: SessionKey, *, turn_id: str = "", deleted: bool = False, request: RequestKey | None = None
    ) -> Snapshot | None:
        """Returns what a decision about the session needs, or about its turn `turn_id`.

        Returns None if there is no such session; `deleted` as in `session`. With `request`, the snapshot holds the
        record of that request as well, read no earlier than the head.
        """
        ...

    async def turn(self, key: SessionKey, turn_id: str) -> Turn | None:
        """Returns the turn, or None if the session has no such turn."""
        ...

    async def turns(
        self, key: SessionKey, *, states: tuple[TurnState, ...], limit: int, before: int | None
    ) -> Sequence[Turn]:
        """Returns a page, newest first: turns in `states` (empty: all) whose `first_sequence` is below `before`."""
        ...

    async def call(self, key: SessionKey, call_id: str) -> Call | None:
        """Returns the tool call, or None if the session has none with this id."""
        ...

    async def find_request(self, key: RequestKey) -> RequestRecord | None:
        """Returns the durable record of what the request did. Returns None if there is none, or if its session is
        deleted."""
        ...

    async def request_cancel(self, key: SessionKey, cancel: Cancel) -> bool:
        """Asks the turn's owner to cancel it. Returns False, and stores nothing, unless the turn is active and owned.

        A second request for the same turn returns True and changes nothing.
        """
        ...

    async def keep_late_result(
        self,
        key: SessionKey,
        tool_call_id: str,
        *,
        attempt: int,
        fence: int,
        result: ToolResult,
    ) -> bool:
        """Stores beside the call what a tool returned after its owner had lost the lease. No event is appended.

        Returns True if it is stored: for this start of the call alone, once (a repeat returns True as well), while the
        call has no result from its tool. A PENDING approval of kind OUTCOME gets the result and
        `hash_with_late_result`, so that a decision made without it is refused. A changeset that was decided before and
        changes the call is a Conflict.
        """
        ...

    async def agent(self, tenant: str, name: str, version: str) -> Agent | None:
        """Returns the content of a version that some session of the tenant pinned, or None."""
        ...


class EventLog(LogEnds, Protocol):
    """The one verb that changes a session, and the log that it appends to."""

    async def commit(self, changeset: Changeset) -> CommitResult:
        """Stores the changeset in one transaction, on a majority.

        Returns only what is certain: an unknown outcome is resolved by the `changeset_id`. A second call with the same
        `changeset_id` returns what the first one did. Raises ServiceUnavailable if the outcome stays unknown until the
        operation's deadline: see `outcome`.
        """
        ...

    async def outcome(self, changeset: Changeset) -> CommitResult | None:
        """Returns the result of a commit that took a lease and raised ServiceUnavailable, as soon as it is known.

        Returns None if nothing was stored, or if that is still unknown a minute later. Call it once for each commit:
        until then the changeset is kept, and a second call returns None. Sends nothing anew.
        """
        ...

    async def events(
        self,
        key: SessionKey,
        *,
        after: int,
        limit: int,
        kinds: frozenset[str] = frozenset(),
        turn_id: str = "",
        until: int = 0,
    ) -> Sequence[StoredEvent]:
        """Returns durable events in order: at most `limit`, numbered above `after` and up to `until` (0: no bound)."""
        ...

    async def last_seqs(self, sessions: Sequence[SessionKey]) -> Mapping[SessionKey, int]:
        """Returns the number of the last event of each session that exists. Sends one query."""
        ...

    def notifications(self) -> AbstractAsyncContextManager[AsyncIterator[Notification]]:
        """Yields changes of any session of any tenant from the entry on, in order for each session.

        There is a notification for each changeset, claim, sweep and request to cancel; none for renewals. This
        replica's own claims are left out, and so are changesets of its owners and those that took a lease. Preview
        chunks of other replicas come on the same stream, and so does each change of an approval, also of this one.

        Raises ServiceUnavailable, on entry and later, if the stream has ended. The next entry resumes where the last
        one ended, if the database still has that position.
        """
        ...


class SessionLog(SessionStore, EventLog, Protocol):
    """Sessions together with their logs."""


class Leases(Protocol):
    """Which owner runs which turn."""

    async def claim(self, owner: str, *, lease: timedelta, without: Busy = NONE_BUSY) -> Claim | None:
        """Leases to `owner` the active turn of a session that is due (its `wake_at` has passed), but of none of
        `without`.

        Tenants come in turn: the next one, in the order of their names, after that of this store's last claim.

        Returns None if no turn is due. Two callers never get the same turn; every claim has a higher fence than any
        before it in that session. Skips suspended sessions, and turns that need a newer schema than this replica's
        (`Head.needs`, `Head.log_needs`). Picks at random among the tenant's 32 turns that have been due longest.

        A turn is passed over only if it is certainly not leased to this caller. If that stays unknown, or if the caller
        is cancelled, the claim is given back, also when it is stored later: the turn is due again, and no lapse is
        counted.
        """
        ...

    async def give_back(self, key: SessionKey, *, owner: str, fence: int, broken: bool = False) -> bool:
        """Releases a lease, so that the turn can be claimed at once. No lapse is counted.

        `broken`: the owner's run broke on a defect. That is counted (`Claim.broken_runs`). The first time, only other
        replicas may claim the turn for 2 s, if there are any. From the third time on the turn is due later each time.
        Returns False if another owner or fence holds the session.
        """
        ...

    async def renew(self, key: SessionKey, *, owner: str, fence: int, lease: timedelta) -> bool:
        """Extends the lease to `lease` from now. Returns False if another owner or fence holds the session."""
        ...

    async def renew_all(
        self, leases: Mapping[SessionKey, int], *, owner: str, lease: timedelta
    ) -> Mapping[SessionKey, bool]:
        """Renews all leases of an owner, given as sessions with their fences, in as few commands as possible.

        Returns True for each that is held, False for one that another owner or fence holds. Those of which that is not
        known in time are left out. Raises ServiceUnavailable if none is known.
        """
        ...

    async def cancelled_among(self, owned: Sequence[SessionKey]) -> Sequence[str]:
        """Returns the ids of those of the sessions whose owner must look: the session is suspended, its active turn
        is to be cancelled, or its lease has lapsed."""
        ...


class ApprovalStore(Consistent, Protocol):
    """Approvals, to be read. They change by changesets only."""

    async def approval(self, tenant: str, approval_id: str) -> Approval | None:
        """Returns None if there is no such approval, or if its session is deleted."""
        ...

    async def approvals(
        self, tenant: str, where: ApprovalFilter, *, limit: int, after: tuple[datetime, str] | None
    ) -> Sequence[Approval]:
        """Returns a page ordered by (create_time, id), beginning beyond `after`, without those of deleted sessions.

        A session is deleted with its PENDING approvals closed: with `where.only_pending` that is not looked at.
        """
        ...

    async def count_approvals(self, tenant: str, where: ApprovalFilter, *, most: int) -> int:
        """Returns how many approvals `approvals` would return without a limit, or `most` if there are more."""
        ...

    async def approvals_by_id(self, tenant: str, approval_ids: Collection[str]) -> Sequence[Approval]:
        """Returns those of the approvals that exist, in any order, also those of deleted sessions. Sends one query.

        Passes over approvals that only a newer version can read.
        """
        ...


class PreviewStore(Protocol):
    """Previews: text of messages that are being written, for watchers on other replicas. They may get lost."""

    async def put_previews(self, chunks: Sequence[PreviewChunk]) -> None:
        """Stores chunks for half an hour. A second chunk at the same offset changes nothing."""
        ...

    async def previews(self, key: SessionKey, *, message_id: str, attempt: int, after: int) -> Sequence[PreviewChunk]:
        """Returns the stored chunks of this attempt at a message from byte `after` on, in order, perhaps with gaps."""
        ...


HEARTBEAT_INTERVAL: Final = timedelta(seconds=2)
"""The longest time between two heartbeats: a process that starts under the name of another one watches for longer."""


def heartbeat_interval(silent_after: timedelta) -> timedelta:
    """Returns the time between two heartbeats of a replica that counts as dead after `silent_after`."""
    return min(silent_after / 4, HEARTBEAT_INTERVAL)


class StoredHeartbeat(NamedTuple):
    """A heartbeat that a majority has."""

    at: datetime
    """The database's time after it was stored."""
    others_alive: bool
    """Another replica's heartbeat is still fresh."""


class ReplicaRegistry(Protocol):
    """Which replicas are alive, and what all of them share."""

    async def write_heartbeat(self, *, silent_after: timedelta) -> StoredHeartbeat:
        """Publishes this replica's heartbeat on a majority, every `heartbeat_interval(silent_after)`.

        Other replicas abort this one's open transactions once its heartbeat is older than `silent_after`; the replica
        may start new ones after that.
        """
        ...

    async def secret(self, name: str) -> bytes:
        """Returns 32 random bytes, the same for every replica; the first call creates them."""
        ...

    async def ping(self) -> None:
        """Raises ServiceUnavailable unless the database answers."""
        ...


class ForkStore(Protocol):
    """How a fork is made: its id is reserved, the log copied in batches, and the last write makes it visible."""

    async def reserve_fork(self, fork: Fork) -> Fork | None:
        """Reserves the new session's id: from now on no other session can have it. Readers do not find it yet.

        Returns the fork that has the id, as first reserved and with the number of events copied since: this one, or
        another, which the caller must compare. Returns None if a session has the id.
        """
        ...

    async def copy_events(self, fork: Fork, events: Sequence[NewEvent]) -> Fork | None:
        """Stores the next of the fork's events, as many as fit in one transaction. `events` are all of them.

        Returns the fork as it is then, also if another attempt was faster. Returns None if it is finished or removed.
        """
        ...

    async def finish_fork(
        self, fork: Fork, session: Session, *, turns: Sequence[Turn], calls: Sequence[Call], request: RequestRecord
    ) -> RequestRecord:
        """Makes the fork visible with its turns, its calls and the request's record, in one transaction.

        Returns the record that holds: this one, or that of the attempt that finished first.
        """
        ...


class Store(
    SessionLog,
    Leases,
    ApprovalStore,
    PreviewStore,
    ReplicaRegistry,
    Maintenance,
    ForkStore,
    AuditStore,
    OperationStore,
    DelegationStore,
    Protocol,
):
    """All roles together: what a database adapter implements."""


class EventCodec(Protocol):
    """How events become bytes. The store never looks inside."""

    def encode(self, session_id: str, event: NewEvent) -> bytes:
        """Returns the wire form without the event's number."""
        ...

    def number(self, payload: bytes, sequence: int) -> bytes:
        """Returns the wire form with the event's number appended. Nothing is parsed."""
        ...


class Renewer(Protocol):
    """Renews leases from a thread of its own, over a connection of its own."""

    def renew_all(self, leases: Mapping[SessionKey, int], *, owner: str, lease: timedelta) -> Mapping[SessionKey, bool]:
        """Renews as `Leases.renew_all` does, and blocks the thread until the database has answered."""
        ...

    def close(self) -> None:
        """Disconnects."""
        ...
