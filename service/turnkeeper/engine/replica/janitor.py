"""Trims old logs and purges deleted sessions, at most SESSIONS_AT_ONCE of each in one round."""

import logging
from datetime import timedelta

from turnkeeper.engine.replica.schedule import JitteredInterval, every
from turnkeeper.store.maintenance import Retention

SESSIONS_AT_ONCE = 32
"""Logs that one round trims, at most; and sessions that it purges, at most."""
LONGEST_PAUSE = timedelta(days=1)
"""The time from one look at a log to the next, at most; an eighth of `keep_events` if that is shorter."""

logger = logging.getLogger(__name__)


class Janitor:
    """Trims and purges at intervals. One on every replica; several may work on one session at the same time."""

    def __init__(
        self, store: Retention, *, keep_events: timedelta, purge_after: timedelta, interval: JitteredInterval
    ) -> None:
        """Trims events older than `keep_events`; none if it is zero. Purges sessions deleted `purge_after` ago."""
        self._store = store
        self._keep_events = keep_events
        self._purge_after = purge_after
        self._interval = interval

    async def run(self) -> None:
        """Trims and purges at each interval until it is cancelled."""
        await every(self._interval, self.clean, failure="logs not trimmed and deleted sessions not purged")

    async def clean(self) -> None:
        """Purges and trims once. Raises ServiceUnavailable if the database is unavailable."""
        if purged := await self._store.purge(after=self._purge_after, limit=SESSIONS_AT_ONCE):
            logger.info("%d deleted sessions were purged", purged)
        if not self._keep_events:
            return
        pause = min(self._keep_events / 8, LONGEST_PAUSE)
        if trimmed := await self._store.trim(keep=self._keep_events, pause=pause, limit=SESSIONS_AT_ONCE):
            logger.info("%d events were trimmed from logs", trimmed)
