"""What the parts of the store in memory have in common."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from random import Random

from tests.memory_store.state import MemoryDatabase, StoredSession
from turnkeeper.store.contract import EventCodec
from turnkeeper.store.notifications import ChangeNotification

Enter = Callable[[str], Awaitable[None]]
"""Awaited at the beginning of each method, with its name, before the method reads or writes anything.

A method does the rest at once, as in one transaction. So a test decides here when a call arrives at the store.
"""


class Part:
    """One replica's access to the database."""

    _database: MemoryDatabase
    _codec: EventCodec
    _replica: str
    _process: int
    _schema: int
    _random: Random
    _enter: Enter

    def linearizable(self) -> AbstractAsyncContextManager[None]:
        """Changes nothing: each read shows everything that was stored before."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _changing(self, stored: StoredSession, *, own: bool = False) -> Iterator[None]:
        """Increments the session's revision, and notifies the replicas of the fields that changed.

        `own`: this replica's own worker writes, so that this replica is not notified.
        """
        last_seq, wake_at, lease_until, owner = stored.last_seq, stored.wake_at, stored.lease_until, stored.owner
        yield
        stored.revision += 1
        notification = ChangeNotification(
            tenant=stored.session.tenant,
            session_id=stored.session.id,
            last_seq=stored.last_seq if stored.last_seq != last_seq else 0,
            claimable=stored.wake_at not in (None, wake_at),
            by_owner=stored.lease_until not in (None, lease_until),
            owner=stored.owner if stored.owner != owner else None,
        )
        self._database.announce(notification, by=self._replica if own else "")
