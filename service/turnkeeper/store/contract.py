"""What the engine asks of a store. Each docstring is the specification; `tests/contracts/` holds the suite.

The promises live here: a session's events are numbered without a gap and become visible in that order; a stale owner's
write is refused; an effect and the record of its request are stored together or not at all. Times that decide
(leases, expiry, wake-ups) are set and compared by the store's own clock. Every method takes the tenant, except those
that serve this replica's own work and return it.

Any method raises ServiceUnavailable when the database cannot be reached or does not answer in time.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Protocol

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.domain.tool import Call, ToolResult
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.store.changeset import (
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
from turnkeeper.store.filters import ApprovalFilter, SessionFilter
from turnkeeper.store.notifications import ChangeNotification, PreviewChunk


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
        self,
        key: SessionKey,
        *,
        turn_id: str = "",
        deleted: bool = False,
        request: RequestKey | None = None,
    ) -> Snapshot | None:
        """What a decision about the session, or about this turn of it, needs; None when there is no such session.
        With `request`, also what that has made: not older than the head, so that an effect seen there is found.

        A deleted one counts as absent unless `deleted` asks for it; one that is being purged always does.
        """
        ...

    async def commit(self, step: Changeset) -> CommitResult:
        """Store the step in one transaction, on a majority.

        Returns only what is known to be so: an unknown outcome is resolved by the `step_id`. Raises
        ServiceUnavailable when it stays unknown beyond the operation's deadline. A second call with the same
        `step_id` finds what the first one did.
        """
        ...

    async def keep_late_result(
        self,
        key: SessionKey,
        tool_call_id: str,
        *,
        attempt: int,
        fence: int,
        arguments_hash: str,
        result: ToolResult,
    ) -> bool:
        """Write on the ledger what a tool returned after its owner had lost the lease; no event, no number.

        True when it is kept: for this start alone, once (the same again is True), while the call has no result of its
        tool's. A PENDING approval of kind OUTCOME shows it, and has `hash_with_late_result` from there on: a decision
        of somebody who has not read it is refused. A step on the call that was decided before is Stale.
        """
        ...

    async def find_request(self, key: RequestKey) -> RequestRecord | None:
        """What this request made, durably, or None; None, too, while its session is deleted."""
        ...

    async def request_cancel(self, key: SessionKey, cancel: Cancel) -> bool:
        """Ask the turn's owner to cancel it. False, and nothing is stored, unless it is active and owned.

        A second wish for the same turn is True and changes nothing.
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
        """Durable events numbered above `after` (and up to `until`, when it is not 0), in order, at most `limit`."""
        ...

    async def last_seqs(self, sessions: Sequence[SessionKey]) -> Mapping[SessionKey, int]:
        """For each (tenant, session) that exists, the number of its last event; one query."""
        ...

    async def session(self, key: SessionKey, *, deleted: bool = False) -> tuple[Session, Head] | None:
        """None when there is none. A deleted one counts as absent, as in `snapshot`."""
        ...

    async def sessions(
        self, tenant: str, where: SessionFilter, *, limit: int, after: tuple[datetime, str] | None
    ) -> Sequence[tuple[Session, Head]]:
        """A page by (create_time, id), starting beyond `after`; without the deleted ones."""
        ...

    async def turn(self, key: SessionKey, turn_id: str) -> Turn | None: ...

    async def turns(
        self,
        key: SessionKey,
        *,
        states: tuple[TurnState, ...],
        limit: int,
        before: int | None,
    ) -> Sequence[Turn]:
        """A page, newest first: those whose `first_sequence` is below `before`."""
        ...

    async def call(self, key: SessionKey, call_id: str) -> Call | None: ...

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

    async def renew(self, key: SessionKey, *, owner: str, fence: int, lease: timedelta) -> bool:
        """Extend the lease by `lease` from now; False when the fence moved."""
        ...

    async def cancelled_among(self, owned: Sequence[SessionKey]) -> Sequence[str]:
        """Of these (tenant, session): those suspended, or whose active turn shall be cancelled, or is owned no more."""
        ...

    async def put_pieces(self, pieces: Sequence[PreviewChunk]) -> None:
        """Keep previews for half an hour; a second one at the same place changes nothing. They may get lost."""
        ...

    async def pieces(self, key: SessionKey, *, message_id: str, attempt: int, after: int) -> Sequence[PreviewChunk]:
        """What is kept of this attempt at a message from byte `after` on, in order; perhaps with gaps."""
        ...

    def hints(self) -> AbstractAsyncContextManager[AsyncIterator[ChangeNotification | PreviewChunk]]:
        """A hint for each step, claim, sweep and wish in any session from the entry on, in each session in order; none
        for renewals, nor for this replica's own claims, its owners' steps and those that took a lease. And other
        replicas' previews. Raises ServiceUnavailable, on entry and later, when none come any more; the next entry goes
        on where the last one ended, if the database still knows."""
        ...

    async def beat(self, *, silent_after: timedelta) -> bool:
        """This replica lives; once it is silent for so long, others end what it was writing. It may write on.

        Whether any other one lives.
        """
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


class EventCodec(Protocol):
    """How events become bytes; the store never looks inside."""

    def encode(self, session_id: str, event: NewEvent) -> bytes:
        """The wire form without its number."""
        ...

    def number(self, payload: bytes, sequence: int) -> bytes:
        """The wire form with its number, made by appending: nothing is parsed."""
        ...


class Renewer(Protocol):
    """Renews leases from a thread of its own, over a connection of its own."""

    def renew(self, key: SessionKey, *, owner: str, fence: int, lease: timedelta) -> bool:
        """As the store's `renew`; it blocks the thread."""
        ...

    def close(self) -> None: ...


class Retention(Protocol):
    async def trim(self, *, keep: timedelta, pause: timedelta, limit: int) -> int:
        """Trim the logs of at most `limit` sessions that nobody looked at for `pause`; how many events are gone.

        An event is trimmed once it was stored more than `keep` ago by the database's clock, with all before it, unless
        it or one before it belongs to a turn that has not ended. First `compacted_to` is stored, on a majority; only
        then are the events up to it deleted, but for the kinds in COPIED, which a conversation is made of: models,
        ListMessages, restorations and forks need them. Of a deleted session nothing is trimmed. A call that was
        stopped, and goes on when the id is a new session's, changes nothing of that one.
        """
        ...

    async def purge(self, *, after: timedelta, limit: int) -> int:
        """Remove at most `limit` sessions that were deleted more than `after` ago; how many are gone for good.

        And at most as many forks that were begun 72 h ago and never finished: as long as a request's record is kept.
        The next try of such a fork begins anew.

        A session is marked first: from then on nothing can be written to it, and it counts as absent even to those who
        ask for deleted ones. Its id is free for a new session only when nothing of the old one is left.
        """
        ...
