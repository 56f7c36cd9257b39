"""Renewals while the event loop is blocked, by a thread of its own.

A tool that computes on the loop, or a long pause, must not cost turns their owner. A loop that does not answer any more
must: the thread renews only what the loop did not, and only while the loop answered lately. A blocked loop's leases
lapse at most one patience and one lease after its last answer.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import timedelta

from turnkeeper.engine.execution.lease import HeldLease
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import Renewer

JOIN = 1.0
"""Seconds that the thread may take to end; it never keeps the process alive."""

logger = logging.getLogger(__name__)


class LeaseKeepAlive:
    """One on every replica. The thread calls nothing of the loop's but `call_soon_threadsafe`."""

    def __init__(
        self,
        renewer: Callable[[], Renewer],
        *,
        held: Callable[[], Iterable[HeldLease]],
        lost: Callable[[HeldLease], None],
        lease: timedelta,
        patience: timedelta,
    ) -> None:
        """`held` is called by the thread, `lost` by the loop: another owner has the session."""
        self._renewer = renewer
        self._held = held
        self._lost = lost
        self._lease = lease
        self._patience = patience.total_seconds()
        self._pause = lease.total_seconds() / 16
        self._answered = 0.0
        self._ended = threading.Event()

    async def run(self) -> None:
        """The loop answers, again and again; the thread lives as long as this."""
        self._answered = time.monotonic()
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._stand_in, args=(loop,), name="renewals", daemon=True)
        thread.start()
        try:
            while True:
                await asyncio.sleep(self._pause)
                self._answered = time.monotonic()
        finally:
            self._ended.set()
            await asyncio.to_thread(thread.join, JOIN)

    def _stand_in(self, loop: asyncio.AbstractEventLoop) -> None:
        with closing(self._renewer()) as renewer:
            while not self._ended.wait(self._pause):
                try:
                    self._renew_all(renewer, loop)
                except ServiceUnavailable:
                    logger.warning("a lease could not be renewed for a blocked event loop")
                except Exception:
                    logger.exception("leases cannot be renewed for a blocked event loop")

    def _renew_all(self, renewer: Renewer, loop: asyncio.AbstractEventLoop) -> None:
        """What the loop left alone for half the lease, though it renews after a quarter."""
        for held in self._held():
            if self._ended.is_set() or time.monotonic() - self._answered > self._patience:
                return
            if held.age <= self._lease.total_seconds() / 2:
                continue
            began = time.monotonic()
            if renewer.renew(held.key, owner=held.owner, fence=held.fence, lease=self._lease):
                held.renewed(began)
            else:
                loop.call_soon_threadsafe(self._lost, held)
