"""Hints from the database: what other replicas stored, some milliseconds later.

A hint only says where to look. While there are none, the polls of feeds and worker find the same, only later.
"""

import asyncio
import logging
from collections.abc import Callable

from turnkeeper.domain.session import SessionKey
from turnkeeper.durations import jittered
from turnkeeper.engine.execution.worker import Worker
from turnkeeper.engine.replica.preview_receiver import PreviewReceiver
from turnkeeper.engine.streaming.feed import Feeds
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import EventLog
from turnkeeper.store.notifications import ChangeNotification, PreviewChunk
from turnkeeper.telemetry.metrics import Metrics

OWN_STEPS = 0.05
"""Seconds that news of a session that runs here are kept back: its own steps are published sooner, without a read."""
PAUSE = 0.25
LONGEST_PAUSE = 10.0
"""Seconds before the stream is opened again; they double with each try that fails."""

logger = logging.getLogger(__name__)


class ChangeListener:
    """Takes the hints of this replica's one stream to whom they concern."""

    def __init__(
        self,
        store: EventLog,
        *,
        feeds: Feeds,
        elsewhere: PreviewReceiver,
        worker: Worker,
        metrics: Metrics,
        jitter: Callable[[], float],
    ) -> None:
        self._store = store
        self._feeds = feeds
        self._elsewhere = elsewhere
        self._worker = worker
        self._metrics = metrics
        self._jitter = jitter
        self._tries = 0

    async def run(self) -> None:
        """Again and again: a stream that breaks is opened anew."""
        while True:
            reason = "NOT_OPENED"
            try:
                async with self._store.notifications() as hints:
                    await self._opened()
                    reason = "BROKEN"
                    async for hint in hints:
                        self.heard(hint)
            except ServiceUnavailable:
                pass
            except Exception:
                logger.exception("hints cannot be read")
            self._feeds.deaf = self._elsewhere.deaf = True
            self._metrics.hints_lost(reason)
            pause = jittered(min(PAUSE * 2**self._tries, LONGEST_PAUSE), self._jitter())
            self._tries = min(self._tries + 1, 10)
            logger.warning(
                "no hints from the database (%s): polling until they come again, next try in %.1f s", reason, pause
            )
            await asyncio.sleep(pause)

    def heard(self, hint: ChangeNotification | PreviewChunk) -> None:
        """One hint. It may concern nobody here."""
        if isinstance(hint, PreviewChunk):
            self._elsewhere.heard(hint)
            return
        key = hint.session_key
        if hint.last_seq:
            self._grown(key, hint.last_seq)
        if hint.claimable:
            self._worker.hint()
        if not hint.by_owner or hint.owner not in (None, self._worker.owner):
            self._worker.nudge(key)

    def _grown(self, key: SessionKey, last_seq: int) -> None:
        if self._worker.holds(key):
            asyncio.get_running_loop().call_later(OWN_STEPS, self._feeds.heard, key, last_seq)
        else:
            self._feeds.heard(key, last_seq)

    async def _opened(self) -> None:
        """What was missed before is looked for once."""
        if self._tries:
            logger.info("hints come from the database again")
        self._tries = 0
        self._feeds.deaf = self._elsewhere.deaf = False
        self._feeds.ask_all()
        self._worker.hint()
        await self._feeds.look()
