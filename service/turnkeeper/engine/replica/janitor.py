"""Trim old logs and purge deleted sessions, a bounded piece at a time. It decides nothing about a turn."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from turnkeeper.durations import jittered
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import Retention

AT_ONCE = 32
"""Sessions that one round looks at, of each kind."""
LONGEST_PAUSE = timedelta(days=1)

logger = logging.getLogger(__name__)


class Janitor:
    """One on every replica; they do not disturb each other."""

    def __init__(
        self,
        store: Retention,
        *,
        keep_events: timedelta,
        purge_after: timedelta,
        interval: float,
        jitter: Callable[[], float],
    ) -> None:
        """`keep_events` zero: logs are never trimmed. `interval` in seconds."""
        self._store = store
        self._keep_events = keep_events
        self._purge_after = purge_after
        self._interval = interval
        self._jitter = jitter

    async def run(self) -> None:
        """Again and again; nothing here is urgent."""
        while True:
            await asyncio.sleep(jittered(self._interval, self._jitter()))
            try:
                await self.clean()
            except ServiceUnavailable:
                logger.warning("the database does not answer; nothing is trimmed or purged")
            except Exception:
                logger.exception("trimming or purging failed; the next round tries again")

    async def clean(self) -> None:
        """Once. A log is looked at when an eighth of its time has passed, at least once a day."""
        if purged := await self._store.purge(after=self._purge_after, limit=AT_ONCE):
            logger.info("%d deleted sessions were purged", purged)
        if not self._keep_events:
            return
        pause = min(self._keep_events / 8, LONGEST_PAUSE)
        if trimmed := await self._store.trim(keep=self._keep_events, pause=pause, limit=AT_ONCE):
            logger.info("%d events were trimmed", trimmed)
