"""Trims old logs and purges deleted sessions, a bounded part at a time. It decides nothing about a turn."""

import logging
from datetime import timedelta

from turnkeeper.engine.replica.schedule import JitteredInterval, every
from turnkeeper.store.contract import Retention

SESSIONS_AT_ONCE = 32
"""Sessions that one round trims at most, and that it purges at most."""
LONGEST_PAUSE = timedelta(days=1)
"""A log is looked at once in so long, or in an eighth of `keep_events` if that is shorter."""

logger = logging.getLogger(__name__)


class Janitor:
    """Trims and purges at intervals. The janitors of several replicas do not disturb each other."""

    def __init__(
        self, store: Retention, *, keep_events: timedelta, purge_after: timedelta, interval: JitteredInterval
    ) -> None:
        """`keep_events` zero: logs are never trimmed. `purge_after`: from a session's deletion to its purge."""
        self._store = store
        self._keep_events = keep_events
        self._purge_after = purge_after
        self._interval = interval

    async def run(self) -> None:
        """Cleans at each interval until it is cancelled."""
        await every(self._interval, self.clean, failure="logs not trimmed and deleted sessions not purged")

    async def clean(self) -> None:
        """Purges and trims once, SESSIONS_AT_ONCE at most."""
        if purged := await self._store.purge(after=self._purge_after, limit=SESSIONS_AT_ONCE):
            logger.info("%d deleted sessions were purged", purged)
        if not self._keep_events:
            return
        pause = min(self._keep_events / 8, LONGEST_PAUSE)
        if trimmed := await self._store.trim(keep=self._keep_events, pause=pause, limit=SESSIONS_AT_ONCE):
            logger.info("%d events were trimmed from logs", trimmed)
