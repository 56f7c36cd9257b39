"""Decides which leases of other replicas this one may take for lapsed.

A lease lapses by the database's clock. That alone shows no lost owner. While the database was silent no owner could
renew, and when its clock jumps, or another member with another clock becomes the primary, leases lapse early.

So a replica that could not have renewed its own leases judges none: its heartbeats are writes to the same database. It
goes on after HOLD_BACK of a lease, because owners that are alive renew in less. And it takes a lease for lapsed only if
it has lapsed by a second clock as well: the time of its last heartbeat, carried on by its own clock.
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from turnkeeper import lease_clock
from turnkeeper.engine.eventlog.lease import CLOCK_JUMP, HOLD_BACK, SILENT_AFTER

LEAST_SILENCE: Final = 2.0
"""Seconds: what a busy machine keeps a process waiting for, however short the lease is."""
NONE_LAPSED: Final = datetime.fromtimestamp(0, UTC)
"""No lease ends before that."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Heartbeat:
    """A heartbeat that was stored."""

    at: datetime
    """By the database's clock, between the next two."""
    sent_at: float
    received_at: float


class LapseJudge:
    """Learns of this replica's heartbeats. Judges no lease before there are some."""

    def __init__(self, *, lease: timedelta) -> None:
        self._lease = lease.total_seconds()
        self._silence = max(SILENT_AFTER * self._lease, LEAST_SILENCE)
        self._last: _Heartbeat | None = None
        self._steady_since = 0.0
        """When the first heartbeat since the last silence, or the last jump of the database's clock, was answered."""

    def record(self, at: datetime, *, sent_at: float) -> None:
        """Records a heartbeat that was stored: sent at `sent_at`, with the database's clock at `at`, answered now."""
        now, last = lease_clock.now(), self._last
        self._last = _Heartbeat(at, sent_at, now)
        if last is None:
            self._steady_since = now
            return
        silence, jump = now - last.received_at, (at - last.at).total_seconds() - (now - last.sent_at)
        if silence > self._silence or jump > CLOCK_JUMP * self._lease:
            self._steady_since = now
            logger.warning(
                "no turn is taken over by this replica for %.2g s, so that their owners renew first: the database did "
                "not answer for %.2g s, and its clock jumped by %.2g s",
                *(HOLD_BACK * self._lease, silence, max(0.0, jump)),
            )

    def lapsed_by(self) -> datetime:
        """Returns the database's time up to which leases may be taken for lapsed; NONE_LAPSED if none may be now."""
        now, last = lease_clock.now(), self._last
        if last is None or now - last.received_at > self._silence:
            return NONE_LAPSED
        if now - self._steady_since < HOLD_BACK * self._lease:
            return NONE_LAPSED
        return last.at + timedelta(seconds=now - last.sent_at)
