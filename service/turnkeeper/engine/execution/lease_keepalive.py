"""Renews leases from a thread of its own while the event loop is blocked. Otherwise the worker renews them.

A tool that computes on the event loop, or a long pause of the process, must not cost turns their owner. A loop that is
blocked for good must. So the thread renews only the leases that the loop did not, and only for one patience after the
loop was last seen running. A blocked loop's leases lapse at most one patience and one lease after that.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta

from turnkeeper import lease_clock
from turnkeeper.engine.eventlog.lease import CHECK_EVERY, RENEW_AFTER_WHEN_BLOCKED, HeldLeases
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import Renewer

JOIN_TIME = 1.0
"""Seconds that the thread has to end at the stop. It never keeps the process alive."""

logger = logging.getLogger(__name__)


class LeaseKeepAlive:
    """Runs one thread on every replica. Of the event loop, the thread calls only `call_soon_threadsafe`."""

    def __init__(
        self, renewer: Callable[[], Renewer], held_leases: HeldLeases, *, lease: timedelta, patience: timedelta
    ) -> None:
        """`renewer` opens the thread's own connection; it is called by the thread."""
        self._open_renewer = renewer
        self._held_leases = held_leases
        self._lease = lease
        self._patience = patience.total_seconds()
        self._pause = lease.total_seconds() * CHECK_EVERY
        self._loop_ran_at = 0.0
        self._stopped = threading.Event()

    async def run(self) -> None:
        """Records at each CHECK_EVERY that the event loop runs, until cancelled. The thread ends with it."""
        self._loop_ran_at = lease_clock.now()
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._run_thread, args=(loop,), name="renewals", daemon=True)
        thread.start()
        try:
            while True:
                await asyncio.sleep(self._pause)
                self._loop_ran_at = lease_clock.now()
        finally:
            self._stopped.set()
            await asyncio.to_thread(thread.join, JOIN_TIME)

    def _run_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        with closing(self._open_renewer()) as renewer:
            while not self._stopped.wait(self._pause):
                try:
                    self._renew_all(renewer, loop)
                except ServiceUnavailable:
                    logger.warning(
                        "leases not renewed while the event loop is blocked: the database is unavailable; "
                        "retrying in %.2g s",
                        self._pause,
                    )
                except Exception:
                    logger.exception(
                        "leases not renewed while the event loop is blocked; retrying in %.2g s", self._pause
                    )

    def _renew_all(self, renewer: Renewer, loop: asyncio.AbstractEventLoop) -> None:
        """Renews the leases older than RENEW_AFTER_WHEN_BLOCKED; the worker renews them earlier if the loop runs."""
        old = self._lease.total_seconds() * RENEW_AFTER_WHEN_BLOCKED
        due = {lease.key: lease for lease in self._held_leases if lease.age > old}
        sent_at = lease_clock.now()
        if not due or sent_at - self._loop_ran_at > self._patience:
            return
        fences, owner = {key: lease.fence for key, lease in due.items()}, next(iter(due.values())).owner
        for key, is_held in renewer.renew_all(fences, owner=owner, lease=self._lease).items():
            if is_held:
                due[key].renewed(sent_at)
            else:
                loop.call_soon_threadsafe(self._held_leases.lose, due[key])
