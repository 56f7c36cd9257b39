"""Listens for other replicas' changes by the database's change stream, some milliseconds after they are stored.

A notification only names what to read. While none arrive, the polls of feeds and worker find the same, only later.
"""

import asyncio
import logging
from collections.abc import Callable

from turnkeeper.domain.session import SessionKey
from turnkeeper.durations import jittered
from turnkeeper.engine.execution.worker import Worker
from turnkeeper.engine.replica.preview_receiver import PreviewReceiver
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.inbox import Inbox
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import EventLog
from turnkeeper.store.notifications import ApprovalNotification, Notification, PreviewChunk
from turnkeeper.telemetry.metrics import Metrics

OWN_CHANGES_DELAY = 0.05
"""Seconds that a notification of a session whose turn runs here is held back: its changesets are published directly."""
PAUSE = 0.25
"""Seconds before a lost stream is opened again; they double with each try that fails."""
INBOX_POLLED_FROM = 3
"""After so many tries that failed the inbox begins anew with each further one: without changes, it shows snapshots."""
LONGEST_PAUSE = 10.0
"""Seconds between two tries at most."""

logger = logging.getLogger(__name__)


class ChangeListener:
    """Passes the notifications of this replica's one change stream to its feeds, inbox, worker and preview receiver."""

    def __init__(  # noqa: PLR0913 - the parts that listen
        self,
        store: EventLog,
        *,
        feeds: Feeds,
        inbox: Inbox,
        previews: PreviewReceiver,
        worker: Worker,
        metrics: Metrics,
        jitter: Callable[[], float],
    ) -> None:
        """`jitter` returns a random number from 0 to 1."""
        self._store = store
        self._feeds = feeds
        self._inbox = inbox
        self._previews = previews
        self._worker = worker
        self._metrics = metrics
        self._jitter = jitter
        self._tries = 0

    async def run(self) -> None:
        """Listens until it is cancelled; opens the stream again if it breaks."""
        while True:
            reason, cause = "NOT_OPENED", "the stream has ended"
            try:
                async with self._store.notifications() as notifications:
                    await self._begin()
                    reason = "BROKEN"
                    async for notification in notifications:
                        self.receive(notification)
            except ServiceUnavailable as error:
                cause = _cause_of(error)
            except Exception as error:
                cause = type(error).__name__
                logger.exception("notifications from the database not read; the change stream is opened again")
            self._feeds.polling = self._previews.polling = True
            if self._tries < INBOX_POLLED_FROM:
                self._inbox.lost()
            else:
                self._inbox.begin_anew()
            self._metrics.notifications_lost(reason)
            pause = jittered(min(PAUSE * 2**self._tries, LONGEST_PAUSE), self._jitter())
            self._tries = min(self._tries + 1, 10)
            logger.warning(
                "no notifications from the database (%s, %s): polling instead, so that other replicas' events come "
                "later; retrying in %.1f s",
                reason,
                cause,
                pause,
            )
            await asyncio.sleep(pause)

    def receive(self, notification: Notification) -> None:
        """Passes on one notification; it may concern no session of this replica."""
        if isinstance(notification, PreviewChunk):
            self._previews.receive(notification)
            return
        if isinstance(notification, ApprovalNotification):
            self._inbox.notify(notification.tenant, notification.approval_id)
            return
        key = notification.session_key
        if notification.last_seq:
            self._notify_grown(key, notification.last_seq)
        if notification.claimable:
            self._worker.notify()
        if not notification.by_owner or notification.owner not in (None, self._worker.offer.owner):
            self._worker.held_leases.notify(key)

    def _notify_grown(self, key: SessionKey, last_seq: int) -> None:
        """Notifies the session's watchers: at once, or after OWN_CHANGES_DELAY if its turn runs here."""
        if self._worker.held_leases.holds(key):
            asyncio.get_running_loop().call_later(OWN_CHANGES_DELAY, self._feeds.notify_grown, key, last_seq)
        else:
            self._feeds.notify_grown(key, last_seq)

    async def _begin(self) -> None:
        """Stops the polls, and looks once for everything that changed before the stream was opened."""
        if self._tries:
            logger.info("notifications from the database arrive again; polling stops")
        self._tries = 0
        self._feeds.polling = self._previews.polling = False
        self._inbox.begin_anew()
        self._feeds.request_previews()
        self._worker.notify()
        await self._feeds.poll()


def _cause_of(error: ServiceUnavailable) -> str:
    """Returns the class of the driver's exception, with the database's own code if there is one: no text of either."""
    cause = error.__cause__ or error
    code = getattr(cause, "code", None)
    return f"{type(cause).__name__} {code}" if isinstance(code, int) else type(cause).__name__
