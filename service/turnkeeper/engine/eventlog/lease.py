"""The leases that this replica holds: each is the right to write to a session as its turn's owner, under a fence.

Here are all fractions of a lease's duration (`--lease`) at which something is done, except those of the heartbeat: so
that they change together. Every age is by the lease clock.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from turnkeeper import lease_clock
from turnkeeper.domain.session import SessionKey

RENEW_AFTER: Final = 1 / 4
"""The worker renews a lease that no commit has renewed for this fraction of it."""
RENEW_AFTER_WHEN_BLOCKED: Final = 3 / 8
"""The keep-alive's thread renews a lease that the event loop has not renewed for this fraction of it."""
RENEW_BESIDE_COMMIT_AFTER: Final = 1 / 2
"""A commit under way extends its lease itself. It is renewed all the same once it has this fraction of its age."""
SURELY_HELD_FOR: Final = 2 / 3
"""The owner starts new work only in this first fraction of a lease; the rest is its margin."""
CHECK_EVERY: Final = 1 / 16
"""The worker and the keep-alive's thread check the ages of the leases once in this fraction of a lease."""
SILENT_AFTER: Final = 3 / 5
"""A replica whose heartbeat was answered last before this fraction of a lease takes no lease for lapsed.

It is less than what is left of the lease of an owner that is alive, when the database falls silent: it renews from
RENEW_AFTER on, once in CHECK_EVERY.
"""
HOLD_BACK: Final = 3 / 4
"""Nor does it for this fraction of a lease after the database has answered again: owners that live renew first."""
CLOCK_JUMP: Final = 1 / 8
"""A database's clock that gets ahead by this fraction of a lease between two heartbeats has jumped."""
OWNER_PATIENCE: Final = 60.0
"""Seconds for which an owner tries again while the database is unavailable. Another one may take its turn meanwhile."""


class LeaseLost(Exception):
    """Another owner has the session, or may have it: this owner stops, and writes nothing more."""


@dataclass(slots=True, kw_only=True, eq=False)
class HeldLease:
    """The lease on one session, as its owner holds it."""

    key: SessionKey
    turn_id: str
    owner: str
    """This replica's name."""
    fence: int
    duration: timedelta
    """How long the lease lasts from each renewal."""
    renewed_at: float = field(default_factory=lease_clock.now)
    """From before the renewing write was sent: the lease never seems younger than it is."""
    notified: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the turn's run must read the session again: a cancellation was requested, or something was stored."""
    releasing: bool = False
    """The run hands the turn over at the end of its step."""
    cut: bool = False
    """The run hands the turn over now, without waiting for its model or its tools."""
    writes: int = 0
    """Commits of the owner that are under way."""
    is_renewed_alone: bool = False
    """A renewal of this lease alone is under way."""
    lost: bool = False
    """Another owner has the session."""
    run: asyncio.Task[None] | None = None
    """The task that runs the turn."""

    @property
    def age(self) -> float:
        """Seconds since the last renewal."""
        return lease_clock.now() - self.renewed_at

    @property
    def renewal_due(self) -> bool:
        """Returns True if the worker must renew the lease."""
        fraction = RENEW_BESIDE_COMMIT_AFTER if self.writes else RENEW_AFTER
        return self.age > self.duration.total_seconds() * fraction

    @property
    def surely_held(self) -> bool:
        """Returns True for the first SURELY_HELD_FOR of the lease: no other replica can have the session."""
        return self.is_surely_held()

    def is_surely_held(self) -> bool:
        """Returns `surely_held`: each response with a delta depends on it, so that it makes no detour."""
        return lease_clock.now() - self.renewed_at <= self.duration.total_seconds() * SURELY_HELD_FOR

    def renewed(self, sent_at: float) -> None:
        """Records that a write which extends the lease was stored. `sent_at`: when it was first sent."""
        self.renewed_at = max(self.renewed_at, sent_at)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Marks a commit as under way. Its own result then decides whether the lease is lost, not a failed renewal."""
        self.writes += 1
        try:
            yield
        finally:
            self.writes -= 1

    def check_tries(self, *, since: float) -> None:
        """Raises LeaseLost if the owner must not try again what the database has not answered.

        Another owner has the session, the turn is cut, or the first try, at `since`, was OWNER_PATIENCE ago.
        """
        if self.lost or self.cut or lease_clock.now() - since > OWNER_PATIENCE:
            raise LeaseLost


class HeldLeases:
    """The leases of all turns that run on this replica, by session. Iterating is safe from any thread."""

    def __init__(self) -> None:
        self._leases: dict[SessionKey, HeldLease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[HeldLease]:
        return iter(list(self._leases.values()))

    def add(self, lease: HeldLease) -> None:
        """Adds the lease of a turn that starts to run here."""
        self._leases[lease.key] = lease

    def remove(self, lease: HeldLease) -> None:
        """Removes the lease, unless the session has a newer one."""
        if self._leases.get(lease.key) is lease:
            del self._leases[lease.key]

    def holds(self, key: SessionKey) -> bool:
        """Returns True if the session's turn runs here, and no other replica can have it."""
        lease = self._leases.get(key)
        return lease is not None and lease.surely_held

    def notify(self, key: SessionKey) -> None:
        """Makes the run of the session's turn read the session again, if it runs here."""
        lease = self._leases.get(key)
        if lease is not None:
            lease.notified.set()

    def lose(self, lease: HeldLease) -> None:
        """Cancels the run of a turn that another replica owns now.

        Does nothing while a commit is under way: its own result decides.
        """
        if self._leases.get(lease.key) is lease and not lease.writes:
            lease.lost = True
            if lease.run is not None:
                lease.run.cancel()
