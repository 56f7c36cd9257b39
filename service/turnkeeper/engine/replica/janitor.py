"""Trims old logs and purges deleted sessions. The replicas share the work."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

from turnkeeper.engine.replica.schedule import JitteredInterval, every
from turnkeeper.store.maintenance import Retention

LONGEST_PAUSE = timedelta(days=1)
"""The time from one look at a log to the next, at most; an eighth of `keep_events` if that is shorter."""

logger = logging.getLogger(__name__)


class Janitor:
    """Trims and purges at intervals, independently of each other. One on every replica: each begins with its share."""

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
        async with asyncio.TaskGroup() as group:
            group.create_task(every(self._interval, self.purge, failure="deleted sessions not purged"))
            if self._keep_events:
                group.create_task(every(self._interval, self.trim, failure="logs not trimmed"))

    async def purge(self) -> None:
        """Purges all sessions whose time has come. Raises ServiceUnavailable if the database is unavailable."""
        await _log_sum(self._store.purge(after=self._purge_after), "%d deleted sessions were purged")

    async def trim(self) -> None:
        """Trims all logs whose time has come. Raises ServiceUnavailable if the database is unavailable."""
        pause = min(self._keep_events / 8, LONGEST_PAUSE)
        await _log_sum(self._store.trim(keep=self._keep_events, pause=pause), "%d events were trimmed from logs")


async def _log_sum(pages: AsyncIterator[int], message: str) -> None:
    """Logs how many there were on all pages, also if a page failed."""
    count = 0
    try:
        async for done in pages:
            count += done
    finally:
        if count:
            logger.info(message, count)
