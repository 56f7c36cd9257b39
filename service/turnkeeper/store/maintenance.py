"""What the background jobs ask of a store, over all tenants: the roles of the sweeper, the expirer and the janitor."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

from turnkeeper.domain.approval import Approval
from turnkeeper.domain.turn import TurnKey
from turnkeeper.store.changeset import Snapshot

SHARE_KEPT: Final = timedelta(seconds=2)
"""For this long after it is due, work is left to the replica in whose share it is."""


class LapsedPage(NamedTuple):
    """Some of the lapsed approvals."""

    approvals: Sequence[Approval]
    left: int
    """About how many of this replica's share are left behind this page."""


class UnclaimedTurns(NamedTuple):
    """The turns that a worker could claim, and none has claimed."""

    turns: int
    longest: timedelta
    """How long the oldest of them could have been claimed; nothing if there is none."""


class Maintenance(Protocol):
    """What the sweeper needs, over all tenants."""

    async def requeue_lapsed(self, *, lapsed_by: datetime | None = None, rescues: bool = True) -> int:
        """Makes turns claimable that no owner will run otherwise. Returns how many.

        With `lapsed_by`, only leases that had lapsed at that time of the database count as lapsed, and only replicas
        that were silent then as silent.

        First aborts the open transactions of silent replicas. Then makes claimable (without `rescues`, the first kind
        alone: no changeset leaves turns of the others behind):

        - active turns whose lease lapsed; this counts a lapse (`Head.lapses`). The owner counts as lost
          (`Claim.lost_owners`) if it wrote under its fence, and its process's heartbeat stopped: at most one lease
          before the last renewal, and before the last half of the lease. A later heartbeat of that process shows that
          it was only slow or paused: it counts no more. A process that ended in order never counts;
        - sessions with a queue but no active turn: the first in the queue becomes active;
        - active turns that are AWAITING_APPROVAL or AWAITING_OUTCOME without a PENDING approval, or AWAITING_TOOL
          without a REQUESTED call;
        - active turns without a lease, a wake-up or any reason to wait, unless the session is suspended.

        Of turns that need a newer schema than this replica's, only those whose lease lapsed.
        """
        ...

    def lapsed_approvals(self) -> AsyncIterator[LapsedPage]:
        """Yields PENDING approvals whose expiry has passed by the store's clock, page by page.

        The living replicas share them: first come those of this replica's share, oldest expiry first. Then come those
        of all shares that lapsed SHARE_KEPT ago, newest first, because their replica may be slow or dead. Passes over
        approvals that only a newer version can read.
        """
        ...

    def expiring_approvals(self) -> AsyncIterator[Sequence[Approval]]:
        """Yields PENDING approvals whose `expiring_time` has passed by the store's clock, page by page.

        The living replicas share them as they share lapsed approvals.
        """
        ...

    async def snapshots(self, turns: Collection[TurnKey]) -> Mapping[TurnKey, Snapshot]:
        """Returns what decisions about these turns need, each as `SessionStore.snapshot` does, in one read.

        Leaves out what `snapshot` does not find, and what only a newer version can read.
        """
        ...

    async def active_sessions(self) -> int:
        """Returns how many sessions have a turn that runs or waits."""
        ...

    async def waiting_turns(self) -> UnclaimedTurns:
        """Returns how many turns wait for a worker: they are due, have no lease, and their session is not suspended."""
        ...

    async def pending_approvals(self) -> int:
        """Returns how many approvals are PENDING."""
        ...


class Retention(Protocol):
    """What the janitor needs, over all tenants: trimming old logs and purging deleted sessions."""

    def trim(self, *, keep: timedelta, pause: timedelta) -> AsyncIterator[int]:
        """Trims the logs that were last examined `pause` ago, page by page. Yields the number of events.

        The living replicas share the logs as they share lapsed approvals.

        An event is trimmed once it was stored more than `keep` ago by the database's clock, and so were all before it,
        unless one of them belongs to a turn that has not ended. `compacted_to` is stored first, on a majority; only
        then are the events up to it deleted. Those of the kinds in COPIED stay: model contexts, ListMessages,
        restorations and forks need them. Logs of deleted sessions are not trimmed. A call that was stopped and resumes
        when the id belongs to a new session changes nothing of that session.
        """
        ...

    def purge(self, *, after: timedelta) -> AsyncIterator[int]:
        """Removes sessions that were deleted more than `after` ago, page by page. Yields how many are gone for good.

        The living replicas share them as they share lapsed approvals. Also removes forks that were begun 72 h ago and
        never finished: request records are kept that long, so the next attempt at such a fork begins anew. A call
        removes some 5,000 documents of one session, and the next call goes on with it.

        A session is marked first. From then on nothing can be written to it and no reader finds it, deleted or not.
        Its id is free for a new session only when nothing of the old one is left.
        """
        ...
