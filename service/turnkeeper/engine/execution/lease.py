"""What an owner holds: a session, for a while, under a fence."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.writer import LeaseLost


@dataclass(slots=True, kw_only=True)
class HeldLease:
    """One session's lease in its owner's hands.

    `renewed_at` is on the monotonic clock and taken before the write that renewed it, so that it is never too late.
    `nudge` wakes the turn's run: somebody asks to cancel it, or something it should read was stored.
    `releasing`: hand the turn over at the end of its step; `cut`: do not even wait for the model, or for tools, to
    finish. `writes`: steps under way. `lost`: somebody else has the session.
    """

    key: SessionKey
    turn_id: str
    owner: str
    fence: int
    lease: timedelta
    renewed_at: float = field(default_factory=time.monotonic)
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    releasing: bool = False
    cut: bool = False
    writes: int = 0
    lost: bool = False

    @property
    def age(self) -> float:
        """Seconds since the last renewal."""
        return time.monotonic() - self.renewed_at

    @property
    def due(self) -> bool:
        """A quarter of the lease has passed: renew it."""
        return self.age > self.lease.total_seconds() / 4

    @property
    def sure(self) -> bool:
        """Less than two thirds of the lease have passed: nobody else can have it."""
        return self.age <= self.lease.total_seconds() * 2 / 3

    def renewed(self, at: float) -> None:
        """A write that extends the lease was sent first at this time, and has been stored."""
        self.renewed_at = max(self.renewed_at, at)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While a step is under way its own verdict speaks, not a renewal that meets what the step did."""
        self.writes += 1
        try:
            yield
        finally:
            self.writes -= 1

    def check(self) -> None:
        """Raises LeaseLost when it is not sure any more: nothing new may start (self-fence)."""
        if not self.sure:
            raise LeaseLost
